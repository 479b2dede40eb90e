"""A plain NumPy computation with periodic saves: a growing list of results, resumed at its step.

    python examples/numpy_results.py --run runs/results --steps 2000

Each step draws a random matrix and keeps one number of it. Kill it at any time; the same command
goes on with the next step and ends with the same list.
"""

import argparse

import numpy as np

import holdfast
from holdfast import Every


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", default="runs/results", help="the run's directory")
    parser.add_argument("--steps", type=int, default=2000)
    args = parser.parse_args()

    run = holdfast.Run(args.run, every=Every(steps=100))
    run.state["rng"] = np.random.default_rng(0)
    run.state["results"] = []

    for step in run.steps(args.steps):
        matrix = run.state["rng"].standard_normal((50, 50))
        run.state["results"].append(float(np.linalg.norm(matrix @ matrix.T)))
        if (step + 1) % 500 == 0:
            print(f"step {step + 1}: mean {np.mean(run.state['results']):.6f}", flush=True)

    results = run.state["results"]
    print(f"{len(results)} results, mean {np.mean(results):.6f}")
    run.close()


if __name__ == "__main__":
    main()
