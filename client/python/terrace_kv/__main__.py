"""python -m terrace_kv COMMAND: what the package can do without an engine."""

import sys


def main() -> int:
    if len(sys.argv) > 1 and sys.argv[1] == "calibrate":
        try:
            from terrace_kv.calibration import command
        except ModuleNotFoundError as error:
            print(f"terrace calibrate: the Python package {error.name} is missing: "
                  "pip install 'terrace_kv[calibrate]'", file=sys.stderr)
            return 1
        return command.main(sys.argv[2:])
    if len(sys.argv) == 3 and sys.argv[1] == "replay-plot":
        try:
            from terrace_kv import replay_plot
        except ModuleNotFoundError as error:
            print(f"terrace replay --plot: the Python package {error.name} is missing: "
                  "pip install 'terrace_kv[plot]'", file=sys.stderr)
            return 1
        return replay_plot.main(sys.argv[2])
    print("usage: python -m terrace_kv calibrate MODEL ... (--help says more)", file=sys.stderr)
    return 0 if sys.argv[1:] in (["-h"], ["--help"]) else 2


if __name__ == "__main__":
    sys.exit(main())
