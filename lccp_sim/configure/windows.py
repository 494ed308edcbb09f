"""The steps at which the monitors look."""


def window_steps(first_tokens: int | None, batch_tokens: int, steps: int) -> list[int]:
    """The steps of the windows: 0, first_tokens * 2^(j/2) for j = 0, 1, ..., and the last; None: only 0 and the last.

    The grid is fixed in tokens, so runs of different length or batch share it.
    """
    windows = {0, steps}
    if first_tokens is not None:
        j, step = 0, 0
        while step < steps:
            step = max(1, round(first_tokens * 2 ** (j / 2) / batch_tokens))
            j += 1
            if step < steps:
                windows.add(step)
    return sorted(windows)
