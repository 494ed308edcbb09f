"""Documents -> tokens -> packed pools -> batch i, a pure function of (seed, i).

Nothing here knows models or torch. What was prepared once is kept under a cache whose keys name what made it, so that
arms of an ablation share it. One reading order: document, sources, tokenizer, tokens, synthetic, pools, mixture, batch.
"""
