"""What `doctor` finds out: versions, cores, disks, fast paths, processes; and what a training would need."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from distillkit.data.encode import Encoded, encode
from distillkit.data.files import FileDataset
from distillkit.diagnosis import collectives, devices, disk, speed, versions
from distillkit.diagnosis.advice import Findings, advise, advise_on
from distillkit.diagnosis.collectives import Collectives, try_collectives
from distillkit.diagnosis.devices import Gpu, look_around, usable_cores
from distillkit.diagnosis.disk import Disk, try_disk
from distillkit.diagnosis.estimate import Estimate, Training, estimate
from distillkit.diagnosis.hub import Hub
from distillkit.diagnosis.meter import Cost, Kept, Meter
from distillkit.diagnosis.outline import Outlines, Selection
from distillkit.diagnosis.speed import Compilation, Speed
from distillkit.diagnosis.versions import Versions, find_versions
from distillkit.models.live import LiveModel
from distillkit.models.students import FromConfig, FromTeacher
from distillkit.models.teachers import LiveTeacher
from distillkit.schema import LaunchSettings, LoraSettings, Precision, TrainSettings
from distillkit.tasks.causal_lm import CausalLM
from distillkit.tasks.sequence_classification import SequenceClassification
from tests import tiny

CPU = torch.device("cpu")


# versions


def test_what_is_missing_or_too_old_is_told(tmp_path: Path) -> None:
    project = tmp_path / "pyproject.toml"
    project.write_text(
        '[project]\ndependencies = ["torch>=1", "torch>=99", "no-such-package>=2"]\n'
        'optional-dependencies = {fine = ["numpy"], lacking = ["nothing-like-it"], test = ["pytest"]}\n'
    )
    wanted = versions.wanted(project)
    assert list(wanted) == ["", "fine", "lacking"]
    assert versions._unmet(wanted["fine"]) == []
    assert versions._unmet(wanted["lacking"]) == ["nothing-like-it"]
    missing, old = versions._unmet(wanted[""])
    assert missing == "no-such-package>=2"
    assert old == f"torch>=99 ({torch.__version__} is here)"


def test_without_a_checkout_the_installed_metadata_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["torch>=1", "onnx>=1; extra == 'onnx'", 'pytest; extra == "test"']
    monkeypatch.setattr(versions, "requires", lambda _: lines)
    wanted = versions.wanted(tmp_path / "absent.toml")
    assert {name: [need.name for need in needs] for name, needs in wanted.items()} == {"": ["torch"], "onnx": ["onnx"]}


def test_this_installation_lacks_nothing() -> None:
    found = find_versions()
    assert found.unmet == []
    assert found.packages["torch"] == torch.__version__
    assert {"onnx", "peft", "wandb"} <= set(found.extras)


# devices


def test_a_container_may_have_fewer_cores_than_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "CGROUP", tmp_path)
    everything = usable_cores()
    (tmp_path / "cpu.max").write_text("100000 100000\n")
    assert usable_cores() == 1
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert usable_cores() == everything


def test_a_container_may_have_less_memory_than_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "CGROUP", tmp_path)
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("400000\n")
    found = look_around()
    assert (found.memory, found.available) == (1_000_000, 600_000)
    assert found.device.type in ("cpu", "cuda")


# disks


def test_a_disk_is_tried_without_a_trace(tmp_path: Path) -> None:
    found = try_disk(tmp_path / "not" / "there", size=1 << 20)
    assert found.tried == str(tmp_path)
    assert found.problem is None
    assert found.write is not None
    assert found.read is not None
    assert min(found.write, found.read, found.free) > 0
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_refuses_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(disk.tempfile, "TemporaryFile", refuse)
    assert try_disk(tmp_path).problem == "Read-only file system"


# speed


def test_arithmetic_attention_and_memory_are_measured() -> None:
    assert speed.matmul_speed(CPU, torch.float32, seconds=0.001, smallest=64) > 1e6
    assert speed.memory_bandwidth(CPU, seconds=0.001, size=1 << 16) > 1e6
    assert 0 < speed.call_overhead(CPU, calls=5) < 0.1
    taken = speed.attention_time(CPU, torch.float32, speed.KERNELS["math"])
    assert taken is not None
    assert taken > 0
    assert speed.attention_time(CPU, torch.float32, speed.KERNELS["cudnn"]) is None


@pytest.mark.parametrize(
    ("code", "works", "problem"),
    [
        ("print('fine')", True, None),
        ("raise ValueError('InvalidCxxCompiler: No working C++ compiler found')", False, "no C++ compiler"),
        ("raise RuntimeError('no such thing')", False, "RuntimeError: no such thing"),
        ("import time; time.sleep(60)", None, "not done after 2 s"),
    ],
)
def test_compiling_is_tried_in_a_process_with_a_time_limit(
    monkeypatch: pytest.MonkeyPatch, code: str, works: bool | None, problem: str | None
) -> None:
    monkeypatch.setattr(speed, "COMPILED", code)
    patience = 2.0 if works is None else 60.0
    found = speed.try_compile(CPU, patience)
    assert (found.works, found.problem) == (works, problem)


# processes


def test_two_processes_add_up_tensors() -> None:
    found = try_collectives(0, seconds=60.0, start=200.0)
    assert (found.processes, found.backend, found.problem) == (2, "gloo", None)
    assert found.latency is not None
    assert found.bandwidth is not None
    assert found.latency > 0 < found.bandwidth


def test_processes_that_do_not_answer_are_ended() -> None:
    started = time.monotonic()
    found = try_collectives(0, seconds=0.1, start=0.4)
    assert found.problem == "no answer within 0 s"
    assert time.monotonic() - started < 30


def test_processes_that_fail_say_why(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import sys; sys.exit('torch.distributed.DistNetworkError: port taken')"
    monkeypatch.setattr(collectives, "agent_command", lambda *_: [sys.executable, "-c", code])
    assert try_collectives(0).problem == "torch.distributed.DistNetworkError: port taken"


# metering


def test_arithmetic_is_that_of_the_products_and_kept_is_what_backward_needs() -> None:
    outlines = Outlines(CPU)
    with outlines.faking():
        model = nn.Sequential(nn.Linear(32, 64, bias=False), nn.ReLU(), nn.Linear(64, 8, bias=False))
        rows = torch.empty(5, 32)
        kept = Kept([model], [rows])
        with Meter() as meter:
            with kept:
                out = model(rows)
            out.sum().backward()
    # The first layer needs no gradient of its input, all else is multiplied three times.
    assert meter.cost.flops == 2 * 5 * (2 * 32 * 64 + 3 * 64 * 8)
    assert kept.bytes == 5 * 64 * 4  # what ReLU gives, which the second layer reads as well
    assert meter.live >= (32 * 64 + 64 * 8) * 4  # the gradients
    assert meter.peak >= meter.live


def test_operations_on_each_element_read_and_write() -> None:
    with Outlines(CPU).faking():
        one = torch.empty(1000)
        with Meter() as meter:
            (one + one).view(10, 100)
    assert meter.cost == Cost(flops=0, bytes=3 * 4000, calls=1)
    assert meter.peak == 4000


def test_a_fake_mask_selects_as_many_as_the_real_one() -> None:
    with Outlines(CPU).faking():
        mask, states = torch.empty(4, 6, dtype=torch.bool), torch.empty(4, 6, 16)
        with Selection(mask, 9):
            assert states[mask].shape == (9, 16)


# estimates


def language_rows(folder: Path, length: int, count: int = 16) -> Encoded:
    lines = [{"text": " ".join(["what a joy to see this again"] * 60)} for _ in range(count)]
    data = FileDataset(train=str(tiny.write_jsonl(folder / "train.jsonl", lines)), on_leak="ignore", cache=False)
    return encode(data.load(), "train", CausalLM(max_length=length), tiny.tokenizer(), None)


def training(outlines: Outlines, sample: Encoded, processes: int = 1, **settings: object) -> Training:
    task = CausalLM(max_length=64)
    with outlines.faking():
        student = LiveModel(tiny.llama(2, 64, vocab_size=512), tiny.tokenizer(), task)
        teacher = LiveModel(tiny.llama(3, 128, vocab_size=512), tiny.tokenizer(), task)
    given = TrainSettings(**{"batch_size": 4} | settings)  # type: ignore[arg-type]
    return Training(student, teacher, tiny.distillation(), sample, 10, given, processes)


def test_arithmetic_of_a_step_is_that_of_its_parts(tmp_path: Path) -> None:
    outlines = Outlines(CPU)
    found = estimate(training(outlines, language_rows(tmp_path, 64)), outlines)
    rows, length, items = 4, 64, 4 * 63

    def layers(count: int, width: int, times: int, attentions: int) -> int:
        tokens, matrices = rows * length, count * (4 * width * width + 3 * width * 2 * width)
        return 2 * tokens * matrices * times + count * attentions * 2 * rows * length * length * width

    student = layers(2, 64, 3, 2 + 5) + 6 * items * 64 * 512  # flash attention: 2 products forward, 5 back
    teacher = layers(3, 128, 1, 2) + 2 * items * 128 * 512
    assert found.longest == (rows, length)
    assert found.step.flops == student + teacher
    assert found.step.flops == pytest.approx(found.analytic, rel=0.25)  # 6 N tokens knows no attention
    assert found.steps == 10


def test_memory_is_that_of_weights_gradients_and_moments(tmp_path: Path) -> None:
    outlines = Outlines(CPU)
    given = training(outlines, language_rows(tmp_path, 64))
    found = estimate(given, outlines)
    parameters = given.student.count_parameters()
    memory = found.memory
    assert (memory.weights, memory.gradients, memory.optimiser) == (4 * parameters, 4 * parameters, 8 * parameters)
    assert given.teacher is not None
    assert memory.teacher == 4 * given.teacher.count_parameters()
    assert memory.copies == 0
    assert memory.activations > 4 * 64 * 64 * 4 * 2
    lasting = memory.weights + memory.optimiser + memory.teacher
    assert lasting + memory.activations < memory.peak < lasting + 3 * (memory.activations + memory.vocabulary)


def test_smaller_micro_batches_and_adapters_take_less(tmp_path: Path) -> None:
    outlines, rows = Outlines(CPU), language_rows(tmp_path, 64)
    whole = estimate(training(outlines, rows), outlines)
    halves = estimate(training(outlines, rows, micro_batch_size=2), outlines)
    adapters = estimate(training(outlines, rows, lora=LoraSettings(rank=2)), outlines)
    assert halves.memory.activations == pytest.approx(whole.memory.activations / 2, rel=0.05)
    assert halves.memory.copies == whole.memory.gradients
    assert halves.step.flops == pytest.approx(whole.step.flops, rel=0.1)
    assert adapters.trained < whole.trained / 10
    assert adapters.memory.optimiser == 8 * adapters.trained
    assert adapters.step.flops < whole.step.flops


def test_processes_share_a_step(tmp_path: Path) -> None:
    outlines, rows = Outlines(CPU), language_rows(tmp_path, 64)
    alone, two = (estimate(training(outlines, rows, processes), outlines) for processes in (1, 2))
    assert two.memory.activations == pytest.approx(alone.memory.activations / 2, rel=0.05)
    assert two.memory.copies == alone.memory.gradients  # DDP's buckets
    assert two.step.flops == pytest.approx(alone.step.flops, rel=0.1)  # both run on the same cores


def test_students_are_outlined_without_weights(tmp_path: Path) -> None:
    outlines, task = Outlines(CPU), SequenceClassification(max_length=32)
    folder = tiny.save(tiny.classifier(layers=4), tmp_path / "teacher")
    (folder / "model.safetensors").unlink()
    teacher = outlines.teacher(LiveTeacher(str(folder)), task, tiny.LABELS)
    rows = FileDataset(**tiny.data_files(tmp_path), labels=tiny.LABELS).load()
    few = outlines.student(FromTeacher(2), task, tiny.LABELS, rows, teacher)
    small = outlines.student(FromConfig({"num_hidden_layers": 1}), task, tiny.LABELS, rows, teacher)
    assert few.model.config.num_hidden_layers == 2
    assert small.model.config.num_hidden_layers == 1
    assert few.count_parameters() < teacher.count_parameters()


REAL = """
import sys, threading, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from transformers import BertForSequenceClassification
from distillkit.data.encode import encode
from distillkit.data.files import FileDataset
from distillkit.diagnosis.estimate import Training, estimate
from distillkit.diagnosis.outline import Outlines
from distillkit.models.live import LiveModel
from distillkit.models.teachers import FrozenModel
from distillkit.schema import TrainSettings
from distillkit.tasks.sequence_classification import SequenceClassification
from distillkit.training.engines import Trainee
from distillkit.training.optimizer import make_optimizer
from tests import tiny

task, tokens = SequenceClassification(max_length=64), tiny.tokenizer()
lines = [{"text": " ".join([tiny.GOOD[0]] * 60), "label": tiny.LABELS[i % 2]} for i in range(64)]
data = FileDataset(train=str(tiny.write_jsonl(Path(sys.argv[1]), lines)), labels=tiny.LABELS, on_leak="ignore")
rows, objective = encode(data.load(), "train", task, tokens, tiny.LABELS), tiny.distillation()

def make(layers, hidden):
    return LiveModel(tiny.bert(layers, hidden), tokens, task)

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

def steps(student, teacher, count):
    trainee = Trainee(student, objective)
    optimizer, batch = make_optimizer(trainee, TrainSettings()), rows.batch(range(count))
    for _ in range(2):
        loss, _ = trainee(batch, teacher(batch), objective.counts(batch))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trainee.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

outlines = Outlines(torch.device("cpu"))
with outlines.faking():
    shapes = make(4, 256), make(3, 384)
planned = estimate(Training(*shapes, objective, rows, 2, TrainSettings(batch_size=32), 1), outlines).memory.peak
steps(make(1, 64), FrozenModel(make(1, 64)), 2)  # what libraries take when they are first used is not counted
before, most, done = resident(), 0, False

def watch():
    global most
    while not done:
        most = max(most, resident())
        time.sleep(0.001)

watcher = threading.Thread(target=watch)
watcher.start()
steps(make(4, 256), FrozenModel(make(3, 384)), 32)
done = True
watcher.join()
print(planned / (most - before))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_about_what_a_real_run_takes(tmp_path: Path) -> None:
    argv = [sys.executable, "-c", REAL, str(tmp_path / "train.jsonl")]
    done = subprocess.run(argv, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert 1 / 1.5 < float(done.stdout.split()[-1]) < 1.5


# advice


def findings(**changes: object) -> Findings:
    """A machine on which there is nothing to change."""
    machine = replace(
        look_around(), cores=8, threads=8, load=0.0, omp_threads=None, gpus=[], driver=None, shared=8 * 10**9
    )
    fast = Speed({"no": 1e12, "bf16": 1.2e12, "fp16": 1e10}, 1e10, 1e-5, {"math": 1.0}, Compilation(True, 9.0))
    given = {
        "versions": Versions({}, [], {}),
        "machine": machine,
        "hub": Hub(True, "", ""),
        "speed": fast,
        "collectives": Collectives(2, "gloo", 1e-4, 1e9),
        "disks": {"output_dir": Disk("out", "out", 10**12, 1e9, 1e9)},
    }
    return Findings(**given | changes)  # type: ignore[arg-type]


def advice(found: Findings, precision: Precision = Precision.no, **launch: int) -> list[tuple[bool, str]]:
    return [(each.broken, f"{each.what} → {each.fix}") for each in advise(found, [precision], LaunchSettings(**launch))]


def test_nothing_is_advised_where_nothing_is_wrong() -> None:
    assert advice(findings()) == []


def test_the_faster_precision_is_advised() -> None:
    fast = replace(findings().speed, matmul={"no": 1e11, "bf16": 5e11, "fp16": 1e10})
    told = [
        (False, "train.precision=no is set, and products in bf16 are 5.0 times as fast here → train.precision=bf16")
    ]
    assert advice(findings(speed=fast)) == told
    assert advice(findings(speed=fast), Precision.bf16) == []
    [(_, slow)] = advice(findings(), Precision.fp16)
    assert "products in fp32 are 100.0 times as fast here → train.precision=no" in slow


def test_what_is_broken_comes_first_and_says_what_to_do() -> None:
    machine = replace(findings().machine, omp_threads="1", threads=1, shared=64 * 10**6, load=30.0)
    disks = {
        "output_dir": Disk("out", "/mnt", 10**12, problem="Read-only file system"),
        "DISTILLKIT_CACHE": Disk("cache", "/home", 4 * 10**9, 1e9, 1e9),
    }
    found = findings(
        machine=machine,
        disks=disks,
        versions=Versions({}, ["torch>=9 (8 is here)"], {}),
        speed=replace(findings().speed, compilation=Compilation(False, 1.0, "no C++ compiler")),
        collectives=Collectives(2, "gloo", problem="no route"),
    )
    told = advice(found)
    assert [broken for broken, _ in told] == [True] * 2 + [False] * 6
    text = "\n".join(line for _, line in told)
    for part in (
        "pip install 'torch>=9'",
        "cannot write to /mnt (Read-only file system)",
        "install g++",
        "OMP_NUM_THREADS=1 leaves 7 of 8 cores idle",
        "/dev/shm has 64 MB",
        "30 programs want 8 cores",
        "2 processes cannot work together (gloo): no route",
        "/home has 4.0 GB left",
    ):
        assert part in text
    assert sum(broken for broken, _ in advice(found, num_processes=2)) == 3  # then processes are needed


def test_gpus_that_are_not_used_are_named() -> None:
    there = replace(findings().machine, driver="550.1", cuda=None)
    assert "torch is built without CUDA" in advice(findings(machine=there))[0][1]
    two = replace(there, gpus=[Gpu("H100", 80 * 10**9, 79 * 10**9, "9.0")] * 2, cuda="12.8")
    assert advice(findings(machine=two)) == [(False, "2 GPUs are here, and one is used → launch.num_processes=2")]
    assert advice(findings(machine=two), num_processes=4)[0][0] is True


def test_a_training_that_does_not_fit_is_told(tmp_path: Path) -> None:
    outlines = Outlines(CPU)
    found: Estimate = estimate(training(outlines, language_rows(tmp_path, 64)), outlines)
    assert list(advise_on("train", found, 10**12)) == []
    [told] = advise_on("train", found, found.memory.peak)
    assert "train.micro_batch_size=2" in told.fix
