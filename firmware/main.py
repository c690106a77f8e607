"""The door: finds the application slot, starts the agent that is in it, and catches what escapes.

Whatever ends the agent, the contactors open. An error restarts the board. A configuration that
cannot be used is named on the console and waits there for a better one. Ctrl-C gives the REPL;
further ones are not heard until all is safe and the next boot knows why.
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
    import micropython
    from wattlock.errors import ConfigError

    board = None
    try:
        try:
            import start

            board, agent = _deep(8, start.build, slot)
            del sys.modules["start"]
            start = None  # it has done its work
            gc.collect()
            agent.run()
        finally:
            micropython.kbd_intr(-1)
            try:
                time.sleep_ms(0)  # pyboard.py and Thonny send two: here comes the other one
            except KeyboardInterrupt:
                pass
    except KeyboardInterrupt:
        from hal import watchdog

        board and board.safe()
        watchdog.widen()
        print("wattlock: stopped by Ctrl-C; outputs are safe, reset to go on")
        return
    except ConfigError as e:
        from hal import rtc

        print("wattlock: cannot start:", e)
        trying = "trial.json" in os.listdir("/")
        rtc.leave(b"error" if trying else b"hard")  # "hard": whoever brings what is missing resets
        if not trying:  # whatever is tried must not end here
            return
    except BaseException as e:
        board and board.safe()
        sys.print_exception(e)
        try:
            from hal import rtc

            rtc.leave(b"error")
        except Exception:
            pass
    micropython.kbd_intr(3)  # a person can stop here what never comes up
    time.sleep(2)  # what cannot start does not hammer flash, network and console
    machine.reset()


main()
