"""Does the number of CPU threads change bits? `python -m benchmarks.threads` tries and prints.

The products of the MLPs of SmolLM2-135M and LLaVA-1.5-7B, attention and the sum over
positions, for several lengths, each with 1 thread and with more; prints every case that differs.
"""

from __future__ import annotations

import torch
from torch.nn.functional import linear
from torch.nn.functional import scaled_dot_product_attention as attention

WIDTHS = ((576, 1536), (1536, 576), (4096, 11008), (11008, 4096))
ROWS = (1, 2, 3, 5, 7, 9, 16, 45, 200, 640)
THREADS = (1, 2, 3, 4, 8)
DTYPES = (torch.float32, torch.bfloat16)


def cases(generator: torch.Generator):
    """Name and function of everything that is tried."""
    for dtype in DTYPES:
        for inputs, outputs in WIDTHS:
            weight = torch.randn(outputs, inputs, generator=generator).to(dtype)
            for rows in ROWS:
                x = torch.randn(rows, inputs, generator=generator).to(dtype)
                name = f"{dtype} linear {inputs}->{outputs}, {rows} rows"
                yield name, lambda x=x, weight=weight: linear(x, weight)
        for rows in ROWS:
            q = torch.randn(1, 9, rows, 64, generator=generator).to(dtype)
            yield f"{dtype} attention, {rows} rows", lambda q=q: attention(q, q, q, is_causal=True)
            yield f"{dtype} sum over {rows} rows", lambda q=q: q.float().abs().sum(dim=2)


def main() -> None:
    print(f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}")
    tried = differing = 0
    with torch.inference_mode():
        for name, run in cases(torch.Generator().manual_seed(0)):
            results = {}
            for threads in THREADS:
                torch.set_num_threads(threads)
                results[threads] = run()
            unlike = [t for t, found in results.items() if not torch.equal(found, results[1])]
            tried += 1
            if unlike:
                differing += 1
                print(f"{name}: differs with {', '.join(map(str, unlike))} threads")
    print(f"{differing} of {tried} cases differ")


if __name__ == "__main__":
    main()
