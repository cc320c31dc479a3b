"""What does a large file cost `run`? Memory over time, lines a second, and time to resume after each of two SIGKILLs.

    python benchmarks/big_file.py [lines [done]]      (300,000 lines, 200 MB, by default)

The provider is `simulate --rpm 1000000`. `done`: this many lines are in OUT at the beginning, as if an earlier start
had written them; so a busy machine does the rest in minutes, while memory and time to resume are those of the whole
file. The command is killed when a third and when two thirds of the rest are done. At the end each custom_id must be in
OUT once, and the provider's own log shows what was paid for.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.goals import beside  # noqa: E402

MOST_MB, MOST_RESUME_S = 150.0, 5.0  #: goals
WORDS = ("the", "of", "and", "with", "they", "at", "this", "have", "from", "one", "word", "what", "not", "there")
COMMAND = [sys.executable, "-m", "ratelimit_worker"]


def line(number: int, rnd: random.Random) -> dict[str, Any]:
    """A line of IN, of some 650 bytes."""
    body = {
        "model": "gpt-4o-mini",
        "max_tokens": 20,
        "messages": [{"role": "user", "content": " ".join(rnd.choices(WORDS, k=100))}],
        "metadata": {"custom_id": f"q-{number:07}"},
    }
    return {"custom_id": f"q-{number:07}", "method": "POST", "url": "/v1/chat/completions", "body": body}


def answer(number: int, rnd: random.Random) -> dict[str, Any]:
    """A line of OUT, as a run writes it."""
    message = {"role": "assistant", "content": " ".join(rnd.choices(WORDS, k=12)), "refusal": None}
    body = {
        "id": f"chatcmpl-{number}",
        "object": "chat.completion",
        "created": 1_764_000_000,
        "model": "gpt-4o-mini",
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 140, "completion_tokens": 12, "total_tokens": 152},
    }
    response = {"status_code": 200, "request_id": f"req_{number}", "body": body}
    name = uuid.UUID(int=rnd.getrandbits(128)).hex
    return {"id": f"batch_req_{name}", "custom_id": f"q-{number:07}", "response": response, "error": None}


def rss_mb(pid: int) -> tuple[float, float]:
    """Resident memory now, and the most so far, MB."""
    fields = dict(one.split(":", 1) for one in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in one)
    return int(fields["VmRSS"].split()[0]) / 1024, int(fields["VmHWM"].split()[0]) / 1024


def cpu_s(pid: int) -> float:
    """User and system time of a process, seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Lines:
    """Lines of a file that grows, counted as they come."""

    def __init__(self, path: Path) -> None:
        self._path, self._at, self.many = path, 0, 0

    def count(self) -> int:
        """How many there are."""
        if self._path.exists():
            with self._path.open("rb") as file:
                file.seek(self._at)
                while chunk := file.read(1 << 20):
                    self.many += chunk.count(b"\n")
                    self._at += len(chunk)
        return self.many


class Start(NamedTuple):
    """One start of the command."""

    run: subprocess.Popen[str]
    first_s: float  #: until its first new line was in OUT
    most_mb: float


def start_until(folder: Path, url: str, lines: Lines, wanted: int | None, began_s: float) -> Start:
    """One start of the command, until so many lines are in OUT; None: to its end. Prints what it sees."""
    source, out = folder / "in.jsonl", folder / "out.jsonl"
    before, started_s = lines.count(), time.monotonic()
    run = subprocess.Popen(
        [*COMMAND, "run", str(source), "-o", str(out), "--base-url", url, "--state-dir", str(folder / "state")],
        stdout=subprocess.DEVNULL,
        stderr=(folder / "said").open("w"),
        text=True,
        cwd=ROOT,
    )
    first_s, shown_s, most_mb, used_s = 0.0, 0.0, 0.0, 0.0
    while run.poll() is None:
        time.sleep(0.2)
        try:
            (now_mb, most_mb), used_s = rss_mb(run.pid), cpu_s(run.pid)
        except (OSError, KeyError):  # it has just ended
            break
        now_s, many = time.monotonic(), lines.count()
        if not first_s and many > before:
            first_s = now_s
            print(
                f"  first new line after {now_s - started_s:.1f} s of the clock, {used_s:.1f} s CPU of the command; "
                f"most memory {most_mb:.0f} MB",
                flush=True,
            )
        if now_s - shown_s > 15:
            shown_s = now_s
            load = os.getloadavg()[0]
            print(f"  {now_s - began_s:6.0f} s  {now_mb:5.0f} MB  {many:,} lines  load {load:.1f}", flush=True)
        if wanted is not None and many >= wanted:
            break
    if wanted is not None:
        run.kill()
    run.wait()
    done = lines.count() - before
    took_s = time.monotonic() - (first_s or started_s)
    print(
        f"  {done:,} lines, {done / took_s:.0f} a second; CPU {used_s:.1f} s; most memory {most_mb:.0f} MB", flush=True
    )
    return Start(run, first_s - started_s if first_s else float("inf"), most_mb)


def main(many: int = 300_000, done: int = 0) -> int:
    """Run it once; 1: a goal was missed."""
    rnd = random.Random(14)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source, out, log = folder / "in.jsonl", folder / "out.jsonl", folder / "arrivals.jsonl"
        with source.open("w") as file:
            file.writelines(json.dumps(line(number, rnd)) + "\n" for number in range(many))
        with out.open("w") as file:
            file.writelines(json.dumps(answer(number, rnd)) + "\n" for number in range(done))
        print(f"{many:,} lines, {source.stat().st_size / 1e6:.0f} MB; {done:,} of them in OUT", flush=True)
        provider = subprocess.Popen(
            [*COMMAND, "simulate", "--rpm", "1000000", "--log", str(log)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=ROOT,
        )
        try:
            assert provider.stdout is not None
            url, lines, began_s = provider.stdout.readline().strip(), Lines(out), time.monotonic()
            most_mb, resumes_s = 0.0, list[float]()
            for wanted in (done + (many - done) // 3, done + 2 * (many - done) // 3, None):
                print("start, and SIGKILL" if wanted is not None else "start, to the end", flush=True)
                goes_on = lines.count() > 0
                start = start_until(folder, url, lines, wanted, began_s)
                most_mb = max(most_mb, start.most_mb)
                resumes_s += [start.first_s] if goes_on else []
        finally:
            provider.terminate()
            provider.wait()
        print((folder / "said").read_text().splitlines()[-1])
        with out.open() as file:
            ids = Counter(json.loads(text)["custom_id"] for text in file)
        with log.open() as file:
            seen = [one for one in map(json.loads, file) if one["event"] == "request"]
        paid = Counter(one["custom_id"] for one in seen if one["status"] == 200)
        twice = sum(count - 1 for count in paid.values())
        print(
            f"exit code {start.run.returncode}; {len(ids):,} ids in OUT, each {max(ids.values())} time(s); "
            f"{sum(paid.values()):,} requests paid for, {twice} of them twice"
        )
        assert start.run.returncode == 0
        assert len(ids) == many
        assert set(ids.values()) == {1}
    missed = [
        beside("most memory of the command", most_mb, MOST_MB, "MB"),
        beside("from a start to the first new line, the slowest", max(resumes_s), MOST_RESUME_S, "s"),
        beside("paid twice", twice, 0, "requests"),
    ]
    return int(any(missed))


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
