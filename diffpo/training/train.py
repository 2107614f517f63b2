"""The training loop, top to bottom: read, encode, load, resume, update, checkpoint, export.

It knows no method and no family by name. One update takes the rows of a whole effective batch, on all processes, and
divides by their number of terms, so that 1 x 8, 2 x 4 and 8 x 1 pairs give the same update:

    loss = sum over micro-batches, processes and rows / total number of terms
"""

import math
from contextlib import nullcontext
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedType
from torch import Tensor
from torch.distributed.tensor import DTensor

from diffpo.config.run import Config
from diffpo.core.step import preference_step
from diffpo.core.types import DTYPES, PairBatch, Rng, StepOutput, moved, moved_to
from diffpo.data.cache import EncodingCache
from diffpo.data.encode import Encodings, LiveEncodings
from diffpo.data.loader import PairLoader
from diffpo.data.plan import Schedule
from diffpo.data.records import Table
from diffpo.data.segments import SegmentLabels
from diffpo.data.splits import check_order, check_requires, load_splits
from diffpo.data.users import RowUsers
from diffpo.disk.published import published
from diffpo.errors import UserError
from diffpo.media.users import Users
from diffpo.models.encoders import Encoders
from diffpo.training.alerts import Alerts, judged_with
from diffpo.training.export import export
from diffpo.training.learner import Learner, averaged, how_to_go_on, identify_model, prepare_learner, resume, save
from diffpo.training.log import RunLog, describe_run, mean_metrics
from diffpo.training.processes import gather_rows, in_turn, make_accelerator, share
from diffpo.training.reference import find_kept, is_asked, keep
from diffpo.training.run import check_devices, note, run_folder
from diffpo.training.samples import Drawer, SampleGrids, plan_samples
from diffpo.training.selection import Selection
from diffpo.training.serving import inverted
from diffpo.training.stop import Stopped, Watch
from diffpo.training.stream import open_stream


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
                sampler = SampleGrids(config, drawer, folder, identity["model"])
                sampler.base()
        done, alerts = resume(learner, folder, identity), Alerts(least_norm(learner))
        with (
            RunLog(accelerator, folder, done, config.train.steps, every=config.train.log_every) as log,
            watch.patiently(),
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
                number, late = watch.look()
                over = selection is not None and selection.over
                if number or late or over or due(config.train.checkpoint_every, done, config):
                    with log.aside("writing a checkpoint"):
                        save(learner, folder, done, identity)
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
    if config.data.encoded is not None:
        plan, streams = open_stream(config, accelerator, encoders)
        return plan, streams[0], streams[1] if len(streams) > 1 else None, encoders if samples else None
    splits = load_splits(config.data)
    tables = [splits.train]
    if splits.validation is not None and config.train.eval_every:
        tables.append(splits.validation)
    for table in tables:
        check_requires(config.method.columns | ({"user_id"} if users else set()), table, config.method_name)
        if not config.method.uses_preference:
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


def update(learner: Learner, batches: list[PairBatch], epoch: int, micro_seed: int) -> dict[str, float]:
    """Learn from one effective batch, and return values to log, averaged over the terms of all processes.

    `batches` are this process's micro-batches. The rows' draws depend on the epoch; the networks' own dropout, where
    there is any, on `micro_seed`, the number of the update.
    """
    config, accelerator = learner.config, learner.accelerator
    counts = torch.cat([config.method.count(batch) for batch in batches])
    total = gather_rows(accelerator, counts.double()).sum()
    judged, names, rows = [], [], torch.empty(0)
    torch.manual_seed(hash((config.train.seed, micro_seed, len(batches), accelerator.process_index)))  # for inversions
    for i, batch in enumerate(inverted(learner, batches, epoch)):
        torch.manual_seed(hash((config.train.seed, micro_seed, i, accelerator.process_index)))
        last = i == len(batches) - 1  # gradients are exchanged after the last micro-batch only
        accelerator.gradient_state._set_sync_gradients(last)
        with nullcontext() if last else accelerator.no_sync(learner.policy.network):
            output = forward(learner, batch, epoch)
            names = list(output.metrics)
            judged.append(as_rows(learner, batch, output))
            if last and accelerator.distributed_type == DistributedType.DEEPSPEED:  # whose backward is also a step
                rows = read_rows(learner, judged, epoch)
            share = accelerator.num_processes / total.clamp(min=1)  # of one term; no term at all: a loss of zero
            accelerator.backward(output.loss.sum() * moved_to(share, output.loss))
    norm = clip(learner)  # nothing has waited for the device until here
    if not len(rows):
        rows = read_rows(learner, judged, epoch)
    norm = check_norm(learner, norm)
    metrics = mean_metrics(["loss", *names], rows[:, 2:], rows[:, 1])
    metrics |= {"grad_norm": norm, "learning_rate": learner.schedule.get_last_lr()[0], "epoch": epoch}
    step_optimizer(learner, norm)
    return metrics


def forward(learner: Learner, batch: PairBatch, epoch: int) -> StepOutput:
    """Run the method's step on one micro-batch, under autocast if the config says so."""
    train, device = learner.config.train, learner.accelerator.device
    with learner.accelerator.autocast():
        return preference_step(
            learner.config.method,
            learner.policy,
            learner.reference,
            batch.to(device, DTYPES[train.dtype]),
            Rng(train.seed, learner.config.data.draw(epoch), batch.index),
            split_forward=train.split_forward,
        )


def as_rows(learner: Learner, batch: PairBatch, output: StepOutput) -> Tensor:
    """Lay out what is known of each row, `[b n]` in float64: its number, its terms, its loss and its metrics.

    They stay on the device, where it knows float64, so that nobody waits for them yet.
    """
    count, device = learner.config.method.count(batch), learner.accelerator.device
    columns = (batch.index, count, output.loss.detach(), *output.metrics.values())
    place = "cpu" if device.type == "mps" else device
    return torch.stack([moved(column, place, torch.float64) for column in columns], dim=1)


def read_rows(learner: Learner, judged: list[Tensor], epoch: int) -> Tensor:
    """Collect the rows (see `as_rows`) of all micro-batches and processes on the CPU, once the device has made them.

    A loss that is no number stops all processes together, before the optimizer's step.
    """
    rows = gather_rows(learner.accelerator, torch.cat(judged)).cpu()
    check_losses(rows, epoch, how_to_go_on(learner.config))
    return rows


def least_norm(learner: Learner) -> float:
    """Norm of a gradient that is everywhere as large as Adam's epsilon: below it, an update hardly moves anything."""
    adam = learner.config.train.optimizer != "adafactor"
    return learner.config.train.adam_epsilon * math.sqrt(sum(p.numel() for p in learner.trained)) if adam else 0.0


def check_losses(rows: Tensor, epoch: int, advice: str) -> None:
    """Stop, on all processes together and before the optimizer's step, at a loss that is no number (see `as_rows`)."""
    bad = rows[~rows[:, 2].isfinite(), 0].long().tolist()
    if bad:
        raise UserError(
            f"the loss of {len(bad)} row(s) is not finite: rows {', '.join(map(str, bad[:20]))} of the table (epoch "
            f"{epoch}). Nothing was updated. If it is their fault, `diffpo data inspect` may tell. {advice}"
        )


def clip(learner: Learner) -> Tensor | None:
    """Clip the gradient, and return its norm before that, which lies on the device; DeepSpeed tells none."""
    accelerator, most = learner.accelerator, learner.config.train.max_grad_norm
    return accelerator.clip_grad_norm_(learner.policy.network.parameters(), math.inf if most is None else most)


def check_norm(learner: Learner, norm: Tensor | None) -> float:
    """Read the gradient's norm; one that is not finite is left to a loss scaler, or fatal."""
    if norm is None:
        return math.nan
    value = float(norm.full_tensor() if isinstance(norm, DTensor) else norm)
    if not math.isfinite(value) and learner.accelerator.scaler is None:
        raise UserError(
            f"the gradient's norm is {value} although every loss is finite. Nothing was updated. "
            f"{how_to_go_on(learner.config)}"
        )
    return value


def step_optimizer(learner: Learner, norm: float) -> None:
    """Update the weights, the schedule and the average; an fp16 overflow that the scaler handles updates nothing.

    A fused optimizer leaves the weights alone by itself then, unseen by accelerate: the gradient's norm tells.
    """
    learner.optimizer.step()
    learner.optimizer.zero_grad()
    overflow = learner.accelerator.scaler is not None and not math.isfinite(norm)
    if not overflow and not learner.accelerator.optimizer_step_was_skipped:
        learner.schedule.step()
        if learner.average is not None:
            learner.average.update(learner.policy.network)


@torch.no_grad()
def evaluate(learner: Learner, held_out: PairLoader) -> dict[str, float]:
    """Judge the held-out pairs, with the same times and noises every time; the processes share them."""
    train, mine = learner.config.train, []
    rank, world = share(learner.accelerator)
    learner.policy.network.eval()  # an adapter's dropout would not be the same every time
    batches = held_out.held_out(train.batch, limit=train.eval_pairs, rank=rank, world=world)
    for batch in inverted(learner, batches, epoch=0):
        output = forward(learner, batch, epoch=0)
        mine.append((list(output.metrics), as_rows(learner, batch, output)))
    learner.policy.network.train()
    judged = in_turn([(names, rows.cpu()) for names, rows in mine], world)
    names, rows = judged[0][0], torch.cat([rows for _, rows in judged])
    metrics = mean_metrics(["loss", *names], rows[:, 2:], rows[:, 1])
    return {f"eval/{name}": value for name, value in metrics.items()}
