"""Runs the portable tests in the VM: `micropython -m portable.run MODULE...`

Prints one line a test, `ok` or `FAIL` and the traceback, and ends with 1 if any failed. A module
whose name a board's hardware would need is not there (see `test_portable.py`).
"""

import gc
import sys


def run(name):
    module = __import__("portable." + name, None, None, ("*",))
    failed = 0
    for test in sorted(dir(module)):
        if not test.startswith("test_"):
            continue
        gc.collect()
        try:
            getattr(module, test)()
        except Exception as e:
            failed += 1
            print("FAIL", name, test)
            sys.print_exception(e)
        else:
            print("ok", name, test)
    return failed


def main(names):
    return sum([run(name) for name in names])


if __name__ == "__main__":
    sys.exit(1 if main(sys.argv[1:]) else 0)
