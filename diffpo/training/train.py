"""The training loop, top to bottom: read, encode, load, resume, update, checkpoint, export.

It knows no method and no family by name; what an update does is in `update`.
"""

from pathlib import Path

from accelerate import Accelerator

from diffpo.config.run import Config
from diffpo.data.cache import EncodingCache
from diffpo.data.encode import Encodings, LiveEncodings
from diffpo.data.loader import PairLoader
from diffpo.data.plan import Schedule
from diffpo.data.records import Table
from diffpo.data.segments import SegmentLabels
from diffpo.data.splits import check_order, check_requires, load_splits
from diffpo.data.users import RowUsers
from diffpo.disk.published import published
from diffpo.media.users import Users
from diffpo.models.encoders import Encoders
from diffpo.training.alerts import Alerts, judged_with
from diffpo.training.export import export
from diffpo.training.learner import averaged, identify_model, prepare_learner, resume
from diffpo.training.log import RunLog, describe_run
from diffpo.training.processes import make_accelerator
from diffpo.training.reference import find_kept, is_asked, keep
from diffpo.training.run import check_devices, note, run_folder
from diffpo.training.samples import Drawer, SampleGrids, plan_samples
from diffpo.training.saving import Saver
from diffpo.training.selection import Selection, check_selection
from diffpo.training.stop import Stopped, Watch
from diffpo.training.stream import open_stream
from diffpo.training.update import evaluate, least_norm, update


def train(config: Config, *, fresh: bool = False, push: str | None = None) -> Path:
    """Run, or resume, a training run.

    Args:
        config: All there is to say.
        fresh: Begin anew in a folder that holds another run.
        push: Hub repository that gets the export.

    Returns:
        The run's folder.

    Raises:
        UserError: Whatever the user can mend; nothing written before is lost.
        Stopped: SIGTERM or SIGINT came; what was done is in a checkpoint.
    """
    accelerator = make_accelerator(config)
    check_devices(config, accelerator.device)
    with (
        Watch(accelerator, config.train.checkpoint_minutes) as watch,
        run_folder(config, accelerator, fresh=fresh) as folder,
    ):
        start_trackers(config, accelerator, folder)
        users = None if config.data.users is None else Users.open(config.data.users)
        plan, loader, held_out, encoders = prepare_data(config, accelerator, users)
        kept = find_kept(config, loader, held_out)
        learner = prepare_learner(config, accelerator, is_asked(config, accelerator, kept), users)
        keep(learner, kept)
        identity = {"pairs": loader.identity, "model": identify_model(config)}
        sampler = None
        if encoders is not None:
            drawer = Drawer(config, accelerator, learner.policy, encoders)
            learner.selection = None if config.train.select is None else Selection(config.train.select, drawer)
            if draws_grids(config):
                sampler = SampleGrids(config, drawer, folder, identity["model"], users)
                sampler.base()
        done, alerts = resume(learner, folder, identity), Alerts(least_norm(learner))
        with (
            RunLog(accelerator, folder, done, config.train.steps, every=config.train.log_every) as log,
            watch.patiently(),
            Saver(learner, folder, identity) as saver,
        ):
            for line in describe_run(learner, plan, loader, held_out, folder, done):
                log.say(line)
            selection = learner.selection
            last = done if selection is not None and selection.over else config.train.steps
            for batches in loader.updates(plan, done, last, rank=accelerator.process_index):
                for alert in alerts.begin(*judged_with(config, batches[0])):
                    log.say(f"note: {alert}")
                metrics = update(learner, batches, plan.position(done)[0], micro_seed=done)
                done += 1
                metrics |= log.timing(plan.effective)
                judged = due(config.train.eval_every, done, config) and held_out is not None
                if judged:
                    with log.aside("judging the held-out pairs"):
                        metrics |= evaluate(learner, held_out)
                if selection is not None and due(selection.every, done, config):
                    judged = True
                    with log.aside("selecting"), averaged(learner):
                        metrics |= selection.look(learner.policy.network, done)
                if judged or due(config.train.log_every, done, config):
                    log.write(done, metrics)
                log.advance(done, metrics)
                for alert in alerts.look(done, metrics):
                    log.say(f"note: {alert}")
                if sampler is not None and due(config.train.sample_every, done, config):
                    with log.aside("sampling"), averaged(learner):
                        sampler.draw(done)
                number, late = watch.look(saver.failed)
                over = selection is not None and selection.over
                if number or late or over or due(config.train.checkpoint_every, done, config):
                    with log.aside("writing a checkpoint"):
                        saver.save(done)
                        if number or over or done == last:
                            saver.finish()
                    watch.saved()
                if number:
                    accelerator.end_training()
                    raise Stopped(number, f"{folder}/checkpoints holds all {done} of {config.train.steps} updates.")
                if over:
                    break
            if selection is not None:
                log.say(f"{folder.name}: {selection.conclusion(done)}")
        with averaged(learner):
            export(config, accelerator, learner.policy, folder, push, selection)
    accelerator.end_training()
    return folder


def start_trackers(config: Config, accelerator: Accelerator, folder: Path) -> None:
    """Open the trackers; what they put into the run's folder is the run's."""
    if config.train.trackers:
        before, told = set(folder.rglob("*")), {"config": str(published(config.to_dict()))}
        try:
            accelerator.init_trackers(config.train.project, told, init_kwargs={"wandb": {"dir": str(folder)}})
        finally:
            if accelerator.is_main_process:
                note(folder, *(path for path in set(folder.rglob("*")) - before if path.is_file()))


def draws_grids(config: Config) -> bool:
    """Whether sample grids are asked for."""
    return config.train.sample_every > 0 and bool(config.sample.prompts)


def due(every: int, done: int, config: Config) -> bool:
    """Whether something that happens every so many updates happens now; the last update always counts."""
    return every > 0 and (done % every == 0 or done == config.train.steps)


def prepare_data(
    config: Config, accelerator: Accelerator, users: Users | None = None
) -> tuple[Schedule, PairLoader, PairLoader | None, Encoders | None]:
    """Read the tables and encode them; the encoders are let go unless something still needs them.

    `users` are those that the policy is told.
    """
    config.model.find_trained()
    base = config.model.find()
    config.method.check_process(base.family.make_process(base.scheduler(config.model.prediction), config.model.time))
    encoders = Encoders(config.model, accelerator.device)
    train, samples = config.train, draws_grids(config) or config.train.select is not None
    if samples:
        plan_samples(config, encoders)
    if train.select is not None:
        check_selection(train.select, accelerator)
    if config.data.encoded is not None:
        plan, streams = open_stream(config, accelerator, encoders)
        return plan, streams[0], streams[1] if len(streams) > 1 else None, encoders if samples else None
    splits = load_splits(config.data)
    tables = [splits.train]
    if splits.validation is not None and config.train.eval_every:
        tables.append(splits.validation)
    for table in tables:
        check_requires(config.method.columns | ({"user_id"} if users else set()), table, config.method_name)
        if config.method.needs_order:
            check_order(table, config.method_name)
    loaders = []
    for table in tables:
        encodings = encode(config, accelerator, table, encoders)
        frames, labels = encodings.targets[:, 0], None
        if config.method.reads_segments:
            held, fps = encoders.latent_frames, encodings.fps
            labels = SegmentLabels(table, frames, config.data, encoders.rule, held, fps)
        learned, sides = table is splits.train, config.method.sides
        dropout = config.data.caption_dropout if learned else 0.0
        how = {"seed": config.train.seed, "caption_dropout": dropout, "draw": config.data.draw}
        whose = None if users is None else RowUsers(table, users, config.data.user_dropout if learned else None)
        loaders.append(PairLoader(table, encodings, sides=sides, labels=labels, users=whose, **how))
    plan = Schedule(train.seed, loaders[0].groups, accelerator.num_processes, train.accumulate, train.batch)
    return plan, loaders[0], loaders[1] if len(loaders) > 1 else None, encoders if samples else None


def encode(config: Config, accelerator: Accelerator, table: Table, encoders: Encoders) -> Encodings:
    """Make a table's encodings available: from the cache, which the processes fill together, or live."""
    seed, sides, rank = config.train.seed, config.method.sides, accelerator.process_index
    if not config.data.cache:
        return LiveEncodings(table, config.data, encoders, seed=seed, sides=sides, rank=rank)
    cache = EncodingCache(table, config.data, encoders, seed=seed, sides=sides, rank=rank)
    cache.fill(world=accelerator.num_processes)
    accelerator.wait_for_everyone()
    return cache.open()
