import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from holdfast.errors import UsageError
from holdfast.payload import threads
from holdfast.payload.sharing import share


def run(script, **options):
    """Runs a script of its own; a hang is an error after half a minute."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=30, **options
    )


def test_a_task_runs_in_a_thread_that_is_no_daemon():
    """A task runs in a named thread of ours, which the interpreter will wait for."""
    seen = []
    threads.submit("blocks", lambda: seen.append(threading.current_thread())).wait()
    assert seen[0].name.startswith("holdfast-blocks")
    assert not seen[0].daemon


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), SystemExit(3)])
def test_an_error_waits_in_the_ticket(error, capfd):
    """Whatever a task raises reaches the one who waits, is printed nowhere, and ends no thread."""

    def fail():
        raise error

    ticket = threads.submit("publish", fail)
    with pytest.raises(type(error)) as caught:
        ticket.wait()
    assert caught.value is error
    assert ticket.error is error
    assert ticket.join()
    assert threads.submit("publish", lambda: None).wait()
    assert capfd.readouterr() == ("", "")


def test_wait_can_give_up():
    """A wait with a timeout says that the task is not done."""
    gate = threading.Event()
    ticket = threads.submit("publish", gate.wait)
    assert not ticket.wait(0.01)
    assert not ticket.done
    assert ticket.error is None
    gate.set()
    assert ticket.wait()
    assert ticket.done


def test_publish_may_wait_for_blocks():
    """A task of "publish" may wait for more tasks of "blocks" than there are threads."""
    count = 3 * threads.size("blocks")
    seen = []

    def publish():
        for ticket in [threads.submit("blocks", lambda: seen.append(1)) for _ in range(count)]:
            ticket.wait()

    threads.submit("publish", publish).wait()
    assert len(seen) == count


def test_an_idle_thread_keeps_nothing_alive():
    """What a finished task referred to is freed while the crew is idle."""
    import gc
    import weakref

    class Thing:
        pass

    thing = Thing()
    gone = weakref.ref(thing)
    threads.submit("publish", lambda thing=thing: None).wait()
    del thing
    for _ in range(100):  # the thread tells that it is done just before it lets go
        gc.collect()
        if gone() is None:
            break
        time.sleep(0.01)
    assert gone() is None


ENDS = {
    "returns": ("", 0),
    "sys.exit": ("sys.exit(7)", 7),
    "an exception": ("raise ValueError", 1),
    "a KeyboardInterrupt": ("raise KeyboardInterrupt", -signal.SIGINT),
}


@pytest.mark.parametrize("end", ENDS)
def test_queued_work_is_finished_when_the_main_thread_ends(end):
    """However the main thread ends, queued work is done, new work still runs, and the process ends."""
    line, code = ENDS[end]
    done = run(f"""
        import sys, threading, time
        from holdfast.payload import threads
        main = threading.main_thread()

        def block(i):
            assert threading.current_thread().name.startswith("holdfast-blocks")
            print("block", i)

        def publish():
            main.join()
            time.sleep(0.02)
            for i in range(20):
                threads.submit("blocks", lambda i=i: block(i)).wait()
            threads.submit("publish", lambda: print("late"))
            print("published")

        threads.submit("blocks", lambda: None)
        threads.submit("publish", publish)
        threads.submit("publish", lambda: print("next"))
        {line}
    """)
    assert done.returncode == code, done.stderr
    lines = done.stdout.split("\n")
    assert sorted(lines) == sorted([*(f"block {i}" for i in range(20)), "published", "next", "late", ""])


def test_no_thread_is_started_after_the_main_thread_ended():
    """Work that comes after the end, in a process without threads of ours, runs in the caller."""
    done = run("""
        import threading
        from holdfast.payload import threads
        main = threading.main_thread()

        def late():
            main.join()
            threading.Thread.start = lambda self: print("started", self.name)
            ticket = threads.submit("blocks", lambda: print(threading.current_thread().name))
            print(ticket.done)

        threading.Thread(target=late, name="mine").start()
    """)
    assert done.stdout == "mine\nTrue\n", done.stderr
    assert done.returncode == 0


def test_work_from_atexit_runs_in_the_caller():
    """After the crews went home, as in `atexit`, work runs at once in the caller."""
    done = run("""
        import atexit, threading
        from holdfast.payload import threads
        threads.submit("blocks", lambda: None).wait()
        atexit.register(lambda: threads.submit("blocks", lambda: print(threading.current_thread().name)).wait())
    """)
    assert done.stdout == "MainThread\n", done.stderr


def test_a_forked_child_starts_anew_and_ends():
    """A child forked amid work hangs neither at its own work, nor at a foreign ticket, nor at exit."""
    done = run("""
        import os, sys, threading
        from holdfast.errors import UsageError
        from holdfast.payload import threads
        gate = threading.Event()
        tickets = [threads.submit(crew, gate.wait) for crew in ("blocks", "publish") for _ in range(6)]
        child = os.fork()
        if not child:
            try:
                tickets[0].wait()
            except UsageError as error:
                print("refused", "forked" in str(error), flush=True)
            threads.submit("blocks", lambda: print("own", flush=True)).wait()
            sys.exit(5)
        _, status = os.waitpid(child, 0)
        gate.set()
        for ticket in tickets:
            ticket.wait()
        print(os.waitstatus_to_exitcode(status))
    """)
    assert done.stdout == "refused True\nown\n5\n", done.stderr


def test_a_child_of_multiprocessing_ends():
    """A child that multiprocessing forks, and that works itself, ends by itself."""
    done = run("""
        import multiprocessing
        from holdfast.payload import threads

        def child():
            threads.submit("publish", lambda: print("child", flush=True))

        threads.submit("blocks", lambda: None).wait()
        process = multiprocessing.get_context("fork").Process(target=child)
        process.start()
        process.join()
        print(process.exitcode)
    """)
    assert done.stdout == "child\n0\n", done.stderr


def test_ctrl_c_interrupts_a_wait():
    """A main thread that waits for a ticket is interrupted by SIGINT, and the work goes on."""
    done = run("""
        import os, signal, threading
        from holdfast.payload import threads
        gate, ready = threading.Event(), threading.Event()
        def work():
            ready.wait()
            os.kill(os.getpid(), signal.SIGINT)
            gate.wait()
        ticket = threads.submit("publish", work)
        try:
            ready.set()
            ticket.wait()
        except KeyboardInterrupt:
            print("interrupted", ticket.done)
        gate.set()
        print(ticket.wait())
    """)
    assert done.stdout == "interrupted False\nTrue\n", done.stderr


def test_share_does_not_wait_for_a_busy_crew():
    """Shared work is done by the caller alone when every thread is busy."""
    gate = threading.Event()
    busy = [threads.submit("blocks", gate.wait) for _ in range(threads.size("blocks"))]
    seen = []
    share(range(50), lambda job: seen.append((job, threading.current_thread())))
    assert [job for job, _ in seen] == list(range(50))
    assert {thread for _, thread in seen} == {threading.current_thread()}
    gate.set()
    for ticket in busy:
        ticket.wait()
    assert len(seen) == 50


def test_share_raises_the_first_error_after_all_have_stopped():
    """After an error nobody begins another job, and nobody is at work when it is raised."""
    working, begun = set(), []
    lock = threading.Lock()

    def work(job):
        with lock:
            working.add(job)
            begun.append(job)
        try:
            if job == 5:
                raise ValueError(job)
        finally:
            with lock:
                working.discard(job)

    with pytest.raises(ValueError, match="5"):
        share(range(10_000), work)
    assert not working
    assert len(begun) < 10_000
    count = len(begun)
    threads.submit("blocks", lambda: None).wait()
    assert len(begun) == count


def test_an_interrupted_share_waits_for_its_helpers():
    """An interrupt in the caller ends the work only when no helper is at it any more."""
    me, gate, begun = threading.current_thread(), threading.Event(), threading.Event()
    busy = []

    def work(job):
        if threading.current_thread() is me:
            assert begun.wait(20)
            threading.Timer(0.02, gate.set).start()
            raise KeyboardInterrupt
        busy.append(job)
        begun.set()
        assert gate.wait(20)
        busy.remove(job)

    with pytest.raises(KeyboardInterrupt):
        share(range(1000), work)
    assert gate.is_set()
    assert not busy


def test_an_interrupt_while_helpers_finish_is_raised_after_them():
    """An interrupt that comes when only helpers are still at work is raised, but not before they are done."""
    me, gate, begun = threading.current_thread(), threading.Event(), threading.Event()
    busy = []

    def work(job):
        if threading.current_thread() is me:
            assert begun.wait(20)
            threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()
            return
        busy.append(job)
        begun.set()
        assert gate.wait(20)
        busy.remove(job)

    threading.Timer(0.7, gate.set).start()
    with pytest.raises(KeyboardInterrupt):
        share(range(2), work)
    assert gate.is_set()
    assert not busy


def test_a_foreign_process_is_named(monkeypatch):
    """Waiting for the work of another process is a UsageError that names both."""
    ticket = threads.Ticket()
    real = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: real + 1)
    with pytest.raises(UsageError, match=f"{real}.*{real + 1}"):
        ticket.wait()
