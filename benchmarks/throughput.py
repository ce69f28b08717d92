"""How many trials an hour: droptune as users run it, against a plain Optuna + PyTorch loop.

    python benchmarks/throughput.py                     # digits, MLP: the figures of the README
    python benchmarks/throughput.py --task fashion      # Fashion-MNIST, small CNN
    python benchmarks/throughput.py --device cuda

Each arm runs in a process of its own and times itself from opening the database to the last
trial; imports (those that torch makes on first use too) and loading the data are left out. The
arms take turns within a round, so that a machine that slows down slows down all of them; ratios
are taken within a round, and the median of the rounds is reported with the lowest and highest.

Arms:
    droptune       SQLite, everything stored, trainer and width chosen by measuring (counted)
    plain          one process, SQLite: study.optimize, nn.Dropout, data in tensors,
                   torch.optim.AdamW, the validation loss reported every epoch
    plain x 2      the same in two processes that share the database, one thread each
    plain memory   the same in one process, Optuna's in-memory storage
    plain loader   plain, with a DataLoader as in Optuna's own PyTorch example
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).parent
ARMS = ("droptune", "plain", "plain x 2", "plain memory", "plain loader")
TASKS = {
    "digits": {"trials": 64, "epochs": 30, "batch_size": 64},
    "fashion": {"trials": 8, "epochs": 2, "batch_size": 64, "rows": 12000},
}


def data(task: str):
    from droptune import Data

    if task == "digits":
        return Data.digits()
    full, rows = Data.fashion_mnist(), TASKS[task]["rows"]
    return Data(
        train=(full.train.x[:rows], full.train.y[:rows]),
        val=(full.val.x[:2000], full.val.y[:2000]),
    )


def mlp(rates=None):
    from torch import nn

    layers = [
        nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10),
    ]  # fmt: skip
    if rates is not None:
        for place, rate in zip((4, 2, 0), reversed(rates), strict=True):
            layers.insert(place, nn.Dropout(rate))
    return nn.Sequential(*layers)


def cnn(rates=None):
    from torch import nn

    drop = [nn.Identity()] * 3
    if rates is not None:
        drop = [nn.Dropout2d(rates[0]), nn.Dropout2d(rates[1]), nn.Dropout(rates[2])]
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), drop[0],
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), drop[1],
        nn.Flatten(), nn.Linear(32 * 7 * 7, 64), nn.ReLU(), drop[2], nn.Linear(64, 10),
    )  # fmt: skip


MODELS = {"digits": mlp, "fashion": cnn}


def run_droptune(task: str, device: str, folder: str) -> dict:
    from droptune import Study
    from droptune.progress import SilentProgress

    settings = TASKS[task]
    study = Study(
        task,
        model=MODELS[task],
        data=data(task),
        epochs=settings["epochs"],
        batch_size=settings["batch_size"],
        encoding="site",
        confirm_blocks=0,
        device=device,
        store=f"sqlite:///{folder}/droptune.db",
    )
    notes = []
    shown = SilentProgress()
    shown.message = notes.append
    started = time.perf_counter()
    result = study.optimize(trials=settings["trials"], progress=shown)
    return {
        "seconds": time.perf_counter() - started,
        "parts": dict(result.seconds),
        "notes": notes,
        "best": result.best["value"],
    }


def run_plain(task: str, device: str, storage: str | None, trials: int, loader: bool) -> dict:
    import optuna
    import torch
    import torch.nn.functional as F
    from torch.utils.data import DataLoader, TensorDataset

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    settings, sets = TASKS[task], data(task).to(device)
    size = settings["batch_size"]
    train, val = sets.train, sets.val

    def batches():
        if loader:
            yield from DataLoader(TensorDataset(train.x, train.y), size, shuffle=True)
            return
        for rows in torch.randperm(len(train), device=device).split(size):
            yield train.x[rows], train.y[rows]

    def objective(trial: optuna.Trial) -> float:
        rates = [trial.suggest_float(f"rate{i}", 0.0, 0.6) for i in range(3)]
        model = MODELS[task](rates).to(device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        for epoch in range(settings["epochs"]):
            model.train()
            for x, y in batches():
                optimizer.zero_grad()
                F.cross_entropy(model(x), y).backward()
                optimizer.step()
            model.eval()
            with torch.no_grad():
                total = sum(
                    F.cross_entropy(model(x), y).item() * len(x)
                    for x, y in zip(val.x.split(8 * size), val.y.split(8 * size), strict=True)
                )
            trial.report(total / len(val), epoch)
        return total / len(val)

    started = time.perf_counter()
    study = optuna.create_study(storage=storage, study_name=task, load_if_exists=True)
    study.optimize(objective, n_trials=trials)
    return {"seconds": time.perf_counter() - started, "best": study.best_value}


def child(arm: str, task: str, device: str, folder: str) -> dict:
    """Run one arm in this process."""
    import torch
    import torch._dynamo  # by torch.optim's first optimizer, and by tracing: 1 to 2 s

    import droptune.study  # noqa: F401

    trials = TASKS[task]["trials"]
    storage = f"sqlite:///{folder}/plain.db"
    if arm == "droptune":
        return run_droptune(task, device, folder)
    if arm == "half":
        torch.set_num_threads(1)
        return run_plain(task, device, storage, trials // 2, loader=False)
    loader = arm == "plain loader"
    return run_plain(task, device, None if arm == "plain memory" else storage, trials, loader)


def start(arm: str, args: argparse.Namespace, folder: str) -> subprocess.Popen:
    command = [sys.executable, __file__, "--child", arm, "--task", args.task]
    command += ["--device", args.device, "--folder", folder]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen) -> dict:
    output, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"an arm failed with exit code {process.returncode}")
    return json.loads(output.splitlines()[-1])


def measure(arm: str, args: argparse.Namespace) -> dict:
    """Run one arm in fresh processes; seconds are those of the slower process."""
    with tempfile.TemporaryDirectory() as folder:
        if arm != "plain x 2":
            return finish(start(arm, args, folder))
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        optuna.create_study(storage=f"sqlite:///{folder}/plain.db", study_name=args.task)
        halves = [finish(p) for p in [start("half", args, folder) for _ in range(2)]]
        return max(halves, key=lambda half: half["seconds"])


def spread(values: list[float], digits: int = 1) -> str:
    middle = statistics.median(values)
    return f"{middle:.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def hardware(device: str) -> str:
    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((s.split(":")[1].strip() for s in lines if s.startswith("model name")), name)
    text = f"{os.cpu_count()} cores of {name}"
    if device.startswith("cuda"):
        import torch

        text += f"; {torch.cuda.get_device_name(device)}"
    return text


def report(rounds: list[dict[str, dict]], args: argparse.Namespace) -> str:
    trials = TASKS[args.task]["trials"]
    arms = list(rounds[0])
    ms = {arm: [1e3 * r[arm]["seconds"] / trials for r in rounds] for arm in arms}
    lines = [
        f"# Throughput: {args.task}",
        "",
        f"{date.today()}; {hardware(args.device)}; Python {platform.python_version()}, "
        + ", ".join(f"{p} {version(p)}" for p in ("torch", "optuna", "sqlalchemy"))
        + f"; n = {len(rounds)} rounds, median (lowest to highest).",
        "",
        f"{json.dumps(TASKS[args.task])}; `python benchmarks/throughput.py --task {args.task} "
        f"--device {args.device}`.",
        "",
        "| arm | ms a trial | droptune is faster by |",
        "|---|---|---|",
    ]
    for arm in arms:
        ratios = [r[arm]["seconds"] / r["droptune"]["seconds"] for r in rounds]
        ratio = "" if arm == "droptune" else spread(ratios)
        lines.append(f"| {arm} | {spread(ms[arm])} | {ratio} |")
    parts: dict[str, list[float]] = {}
    for r in rounds:
        ours = r["droptune"]
        known = ours["parts"] | {"other": ours["seconds"] - sum(ours["parts"].values())}
        for part, seconds in known.items():
            parts.setdefault(part, []).append(100 * seconds / ours["seconds"])
    lines += ["", "Where droptune's time goes, % of its wall time:", ""]
    lines += [f"- {part}: {spread(values)}" for part, values in parts.items()]
    notes = sorted({note for r in rounds for note in r["droptune"]["notes"]})
    return "\n".join([*lines, "", *(f"droptune said: {note}." for note in notes)]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", choices=TASKS, default="digits")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(child(args.child, args.task, args.device, args.folder)))
        return
    rounds = []
    for number in range(args.rounds):
        arms = args.arms if number % 2 == 0 else args.arms[::-1]
        taken = {}
        for arm in arms:
            taken[arm] = measure(arm, args)
            per_trial = 1e3 * taken[arm]["seconds"] / TASKS[args.task]["trials"]
            print(f"round {number + 1}: {arm}: {per_trial:.1f} ms a trial", file=sys.stderr)
        rounds.append({arm: taken[arm] for arm in args.arms})
    text = report(rounds, args)
    print(text)
    if args.save:
        name = f"throughput-{args.task}-{args.device.split(':')[0]}"
        (HERE / "results" / f"{name}.md").write_text(text)
        (HERE / "results" / f"{name}.json").write_text(json.dumps(rounds, indent=1) + "\n")


if __name__ == "__main__":
    main()
