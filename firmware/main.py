"""The door: finds the application slot, starts the agent that is in it, and catches what escapes.

Whatever ends the agent, the contactors open. An error restarts the board. A configuration that
cannot be used is named on the console and waits there for a better one. Ctrl-C gives the REPL.
"""

import gc
import sys

gc.threshold(2048)  # what is loaded stays for good: little garbage between its pieces


def _deep(n, build, slot):
    """Start from deep in the stack: what is left there would count as in use as long as the
    frames of `run` lie over it, and they do for ever."""
    return _deep(n - 1, build, slot) if n else build(slot)


def main():
    try:
        with open("/slot") as f:
            slot = f.read().strip()
    except OSError:
        print("wattlock: no application here; `make deploy` puts one on the board")
        return
    sys.path.insert(0, "/" + slot)
    import os
    import time

    import machine
    from wattlock.errors import ConfigError

    board = None
    try:
        import start

        board, agent = _deep(8, start.build, slot)
        del sys.modules["start"]
        start = None  # it has done its work
        gc.collect()
        agent.run()
    except KeyboardInterrupt:
        from hal import watchdog

        board and board.safe()
        watchdog.widen()
        print("wattlock: stopped by Ctrl-C; outputs are safe, reset to go on")
    except ConfigError as e:
        from hal import rtc

        print("wattlock: cannot start:", e)
        trying = "trial.json" in os.listdir("/")
        rtc.leave(b"error" if trying else b"hard")  # "hard": whoever brings what is missing resets
        if trying:  # whatever is tried must not end here
            time.sleep(2)
            machine.reset()
    except BaseException as e:
        board and board.safe()
        sys.print_exception(e)
        time.sleep(2)  # what cannot start does not hammer flash, network and console
        if board:
            board.reset(b"error")
        machine.reset()


main()
