"""Documents -> tokens -> packed pools -> batch i, a pure function of (seed, i).

Nothing here depends on models or torch. Prepared data are cached under keys derived from their inputs, so that arms of
an ablation share them. Suggested reading order: document, sources, tokenizer, tokens, synthetic, pools, mixture, batch.
"""
