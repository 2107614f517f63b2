"""The benchmark script: sizes and costs of the real architectures, and a run where half of the packages are missing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import bench  # noqa: E402
from bench_cases import CASES, Cost, build, collate, count, make_tuning  # noqa: E402
from bench_machine import limited_memory, matmul_peak, peak_memory  # noqa: E402

CPU = torch.device("cpu")
STAGES = {"data", "noise", "reference", "policy", "optimizer"}
TINY = ("tiny-sdxl",)

# Beside a bare torch: neither data nor configuration nor scorers can be imported.
BARE = """
import runpy, sys
from importlib.machinery import PathFinder
MISSING, find = {"datasets", "open_clip", "pydantic", "typer", "rich"}, PathFinder.find_spec
PathFinder.find_spec = staticmethod(lambda name, *more: None if name.split(".")[0] in MISSING else find(name, *more))
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_a_tiny_case_runs_without_data_config_and_scorers(tmp_path):
    out = tmp_path / "bench.json"
    command = [sys.executable, "-c", BARE, str(ROOT / "scripts" / "bench.py"), *TINY, "--tuning", "lora"]
    command += ["--steps", "2", "--warmup", "1", "--device", "cpu", "--json", str(out)]
    # the script's folder comes first on the path, as Python puts it there for a script
    path = os.pathsep.join([str(ROOT / "scripts"), str(ROOT)])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in (*TINY, "pairs/s", "optimizer s", "of peak"))

    report = json.loads(out.read_text())
    machine = report["machine"]
    assert machine["torch"] == torch.__version__ and machine["threads"] >= 1 and machine["name"]
    assert machine["matmul"]["shape"] == [2048] * 3 and machine["matmul"]["flops"] > 1e8
    assert [r["case"] for r in report["results"]] == list(TINY)
    for result in report["results"]:
        assert result["status"] == "ok" and result["tuning"] == "lora" and result["batch"] == 2
        seconds = result["seconds"]
        assert set(seconds) == STAGES | {"total"} and all(value > 0 for value in seconds.values())
        assert result["pairs_per_second"] == pytest.approx(2 / seconds["total"])
        assert 0.05 < result["peak_gib"] < 16
        assert 0 < result["trained"] < result["parameters"]
        assert result["flops_per_pair"] == result["flops_per_pair_policy"] + 2 * result["flops_per_forward"]
        achieved = result["flops_per_pair"] * result["pairs_per_second"]
        assert result["model_flops_per_second"] == pytest.approx(achieved)
        assert result["share_of_peak"] == pytest.approx(achieved / machine["matmul"]["flops"])


def test_the_memory_table_has_a_line_for_each_model_and_tuning(capsys):
    assert bench.main(["tiny-sd3", "--memory-table", "--device", "cpu", "--batch", "3"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| tiny")]
    assert [line.split("|")[2].strip() for line in lines] == ["full", "lora"]
    for line in lines:
        _, _, _, pairs, plain, checkpointed, _ = line.split("|")
        assert int(pairs) == 3 and float(plain) > 0 and float(checkpointed) > 0


def test_what_does_not_fit_is_reported_and_nothing_is_built(capsys):
    options = bench.parse(["tiny-sd15", "--device", "cpu"])
    accelerator = bench.Accelerator(cpu=True)
    huge = Cost(parameters=10**13, trained=10**13, forward=1.0, policy=4.0, reference=2.0)
    result = bench.measure(CASES["tiny-sd15"], make_tuning("full"), "dpo", 2, huge, options, accelerator)
    assert result["status"] == "OOM" and result["static_gib"] == pytest.approx(10**13 * 20 / 1024**3)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="RLIMIT_DATA counts mappings on Linux only")
def test_a_cpu_without_memory_is_known_by_its_message():
    with limited_memory(CPU, share=0.0), pytest.raises(RuntimeError) as caught:
        torch.empty(4 * 1024**3, dtype=torch.uint8)
    assert any(text in str(caught.value) for text in bench.OUT_OF_MEMORY)
    assert torch.ones(2**20).sum() == 2**20


def test_one_update_trains_what_is_trained():
    """Full: the policy moves, the copy does not. LoRA: the adapters move, the base does not."""
    for kind in ("full", "lora"):
        case, options = CASES["tiny-sdxl"], bench.parse(["tiny-sdxl", "--device", "cpu"])
        update = bench.Update(case, make_tuning(kind), "dpo", 2, options, bench.Accelerator(cpu=True))
        before = {name: p.detach().clone() for name, p in update.network.named_parameters()}
        update.run(0)
        moved = {name for name, p in update.network.named_parameters() if not torch.equal(p, before[name])}
        trained = {name for name, p in update.network.named_parameters() if p.requires_grad}
        assert moved and moved <= trained
        assert all((".lora_" in name) == (kind == "lora") for name in trained)


def test_micro_batches_are_inverted_together():
    """Three of two pairs: calls of four images at most, as in training; every stage is measured."""
    options = bench.parse(["tiny-sd15", "--device", "cpu", "--accumulate", "3"])
    update = bench.Update(CASES["tiny-sd15"], make_tuning("lora"), "smpo", 2, options, bench.Accelerator(cpu=True))
    asked = []
    update.network.register_forward_pre_hook(
        lambda _, arguments: asked.append((torch.is_grad_enabled(), len(arguments[0])))
    )
    (lap,), _ = update.laps(range(1))
    assert len(lap.losses) == len(lap.margins) == 6
    assert set(update.stages([lap])) == STAGES and all(value > 0 for value in update.stages([lap]).values())
    judged = [(False, 4), (True, 4)] * 3  # reference and policy of each micro-batch
    assert asked[-6:] == judged and asked[:-7] == [(False, 4)] * (len(asked) - 7) and len(asked) > 10


def test_the_step_counts_twice_a_forward_for_the_reference_and_more_for_the_policy():
    cost = count(CASES["tiny-sd15"], make_tuning("full"))
    assert cost.reference == 2 * cost.forward
    assert 2.5 * cost.reference < cost.policy <= 3 * cost.reference
    assert cost.pair("dpo") == cost.policy + cost.reference
    # full tuning in float32 with AdamW: weights, gradients, two moments, and the frozen copy
    assert cost.static_bytes(4, 8) == cost.parameters * 20


def test_batches_have_the_shapes_of_the_case():
    case = CASES["tiny-sd3"]
    batch = collate(case.rows(3), first=6)
    assert batch.latent.chosen.shape == (3, 8, 1, 8, 8) and not torch.equal(*batch.latent)
    assert batch.cond.chosen.text.shape == (3, 32, 48) and batch.cond.rejected.pooled.shape == (3, 48)
    assert batch.index.tolist() == [6, 7, 8]


def test_the_peak_is_measured_and_memory_seen():
    matmul = matmul_peak(CPU, torch.float32, size=64, repeats=3)
    assert matmul["shape"] == [64] * 3 and matmul["flops"] >= matmul["median_flops"] > 0
    assert peak_memory(CPU) > 0.01


@pytest.mark.parametrize(
    ("name", "millions"), [("sd15@512", 859.520964), ("sdxl@1024", 2567.463684), ("sd35m@1024", 2243.17152)]
)
def test_full_size_networks_have_the_published_number_of_parameters(name, millions):
    policy, reference = build(CASES[name], make_tuning("full"), "meta", torch.bfloat16)
    assert sum(p.numel() for p in policy.network.parameters()) == round(millions * 1e6)
    assert policy.dtype == torch.float32 and reference.denoiser.dtype == torch.bfloat16


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "forward", "full", "lora"),
    [("sd15@512", 0.803, 6.42, 5.06), ("sd35m@1024", 11.25, 90.0, 76.1)],  # SDXL (6.76, 54.0, 41.9) takes half a minute
)
def test_full_size_networks_cost_what_they_cost(name, forward, full, lora):
    """TFLOPs; SD3.5 with the 333 text states that its pipeline gives it (10.8 per forward with 154)."""
    tuned, adapted = count(CASES[name], make_tuning("full")), count(CASES[name], make_tuning("lora"))
    assert tuned.forward / 1e12 == pytest.approx(forward, rel=2e-3)
    assert adapted.forward == tuned.forward
    assert tuned.pair("dpo") / 1e12 == pytest.approx(full, rel=2e-3)
    assert adapted.pair("dpo") / 1e12 == pytest.approx(lora, rel=2e-3)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [(["sd16"], "unknown case sd16"), (["--steps", "0"], "--steps must be at least 1"), (["--batch", "-1"], "--batch")],
)
def test_mistakes_on_the_command_line_are_named(arguments, says, capsys):
    with pytest.raises(SystemExit) as caught:
        bench.main(arguments)
    assert caught.value.code == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("option", [["--attention", "telepathy"]])
def test_what_cannot_be_had_is_said_and_the_rest_goes_on(option, tmp_path, capsys):
    """An attention that there is not."""
    out = tmp_path / "bench.json"
    assert bench.main(["tiny-sd3", "tiny-sd3", *option, "--device", "cpu", "--json", str(out)]) == 2
    said, results = capsys.readouterr().err, json.loads(out.read_text())["results"]
    assert [r["status"] for r in results] == ["error"] * 2
    assert option[-1].removeprefix("--") in results[0]["message"] and results[0]["message"] in said


@pytest.mark.gpu
def test_a_gpu_runs_a_tiny_case(tmp_path):
    out = tmp_path / "bench.json"
    assert bench.main(["tiny-sd15", "--steps", "2", "--warmup", "1", "--device", "cuda", "--json", str(out)]) == 0
    result = json.loads(out.read_text())["results"][0]
    assert result["status"] == "ok" and result["frozen_dtype"] == "float32"


def test_batches_and_methods_in_one_run(tmp_path, capsys):
    """What the inversions cost per pair by arithmetic: (N + 1) (1 + renoise) images more, 11 and 12."""
    out = tmp_path / "bench.json"
    arguments = ["tiny-sd15", "--device", "cpu", "--method", "dpo", "inpo", "smpo", "--batch", "1", "4"]
    assert bench.main([*arguments, "--steps", "1", "--warmup", "0", "--json", str(out)]) == 0
    results = json.loads(out.read_text())["results"]
    found = {(r["method"], r["batch"]): r for r in results}
    assert len(found) == len(results) == 6
    forward, plain = results[0]["flops_per_forward"], found["dpo", 1]["flops_per_pair"]
    assert found["inpo", 4]["flops_per_pair"] == pytest.approx(plain + 11 * forward)
    assert found["smpo", 4]["flops_per_pair"] == pytest.approx(plain + 12 * forward)
    assert capsys.readouterr().out.count("times the pairs per second of batch 1") == 3
