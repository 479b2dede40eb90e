"""The demonstration behind `make demo`: train, kill in the middle of an epoch, resume, compare to the bit."""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent


def say(text: str) -> None:
    print(f"\n\033[1m{text}\033[0m" if sys.stdout.isatty() else f"\n{text}", flush=True)


def command(script: str, run: Path, *words: str) -> list[str]:
    return [sys.executable, str(HERE / script), "--run", str(run), *words]


def show(words: list[str]) -> None:
    print("$ " + " ".join(["python", *words[1:]] if words[0] == sys.executable else words), flush=True)


def checkpoints(run: Path) -> list[str]:
    return sorted(path.name for path in run.glob("0*_epoch-*")) if run.is_dir() else []


def kill_inside_an_epoch(words: list[str], run: Path) -> None:
    """Starts the training and sends SIGKILL right after a checkpoint inside an epoch has appeared."""
    process = subprocess.Popen(words)
    steps_per_epoch = 0
    while process.poll() is None:
        for name in checkpoints(run):
            epoch, step = int(name.split("epoch-")[1][:4]), int(name.split("step-")[1][:8])
            if epoch == 1 and steps_per_epoch == 0:
                steps_per_epoch = step
            if epoch >= 5 and step % max(1, steps_per_epoch) not in (0, None):
                process.send_signal(signal.SIGKILL)
                process.wait()
                print(
                    f"killed (SIGKILL, exit {process.returncode}); newest checkpoint: {checkpoints(run)[-1]}",
                    flush=True,
                )
                return
        time.sleep(0.002)
    raise SystemExit("The training ended before it could be killed.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", choices=["digits", "mnist"], default="digits")
    parser.add_argument("--epochs", default="20")
    parser.add_argument("--keep", metavar="DIR", help="leave the runs in this directory")
    args = parser.parse_args()
    home = Path(args.keep or tempfile.mkdtemp(prefix="holdfast-demo-"))
    home.mkdir(parents=True, exist_ok=True)
    killed, straight = home / "killed", home / "straight"
    for run in (killed, straight):
        if run.exists():
            raise SystemExit(f"{run} exists already; choose another directory with --keep")
    holdfast = [str(Path(sys.executable).with_name("holdfast"))]
    words = ("--data", args.data, "--epochs", args.epochs, "--every-steps", "7")

    say("1. A training, killed in the middle of an epoch")
    train = command("digits_torch.py", killed, *words)
    show(train)
    kill_inside_an_epoch(train, killed)

    say("2. The same command again: it continues where it was")
    show(train)
    subprocess.run(train, check=True)

    say("3. What is there")
    subprocess.run([*holdfast, "ls", str(killed)], check=True)
    print(flush=True)
    subprocess.run([*holdfast, "show", f"{killed}@best"], check=True)

    say("4. The same training without interruption, and the comparison")
    train = command("digits_torch.py", straight, *words)
    show(train)
    subprocess.run(train, check=True, stdout=subprocess.DEVNULL)
    compare = [*holdfast, "diff", str(killed), str(straight), "--exit-code"]
    done = subprocess.run(compare, check=False)
    if done.returncode:
        raise SystemExit("The resumed training is NOT equal to the uninterrupted one.")
    print("\nThe killed and resumed training equals the uninterrupted one, bit for bit.", flush=True)
    if not args.keep:
        shutil.rmtree(home)
    else:
        print(f"The runs are in {os.path.relpath(home)}.")


if __name__ == "__main__":
    main()
