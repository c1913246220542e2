"""Train on Parquet rows as verl writes them, with a compute_score as verl calls it: verl_reward.py [KEY=VALUE ...]"""

import sys

import burnish


def compute_score(data_source, solution_str, ground_truth, extra_info=None):
    right = ground_truth in solution_str
    return {"score": float(right) if data_source == "sums" else 0.0, "length": len(solution_str)}


if __name__ == "__main__":
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [
        {
            "data_source": "sums",
            "prompt": [{"role": "user", "content": f"What is {a} + {b}?"}],
            "ability": "math",
            "reward_model": {"style": "rule", "ground_truth": str(a + b)},
            "extra_info": {"split": "train", "index": 6 * a + b},
        }
        for a in range(6)
        for b in range(6)
    ]
    pq.write_table(pa.Table.from_pylist(rows), "sums.parquet")
    result = burnish.train(
        {"name": "sums", "task": {"use": "data", "path": "sums.parquet"}},
        rewards=compute_score,
        overrides=sys.argv[1:],
    )
    print(result.report)
