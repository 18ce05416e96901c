"""Advantages, losses, KL, log-probabilities and reductions: functions of tensors.

Every function works on flat ragged tensors. All response tokens of a set of sequences are
concatenated (suffix ``_T``); a suffix ``_B`` means one value per sequence:

    segments_T: int64[T]   index in 0..B-1 of the sequence that a token belongs to
    mask_T:     bool[T]    True where the policy itself wrote the token (an *action token*);
                           tool output and padding are False

Losses of answers that are compared or labelled take one value an answer: ``_B``, or ``_BK`` where K
answers are ranked.

A slot where ``mask_T`` is False may hold anything, NaN and inf included: it reaches neither a loss
nor a gradient nor a metric. Parameters are keys of the configuration's sections, such as
`AlgorithmConfig`, which check their ranges.
"""
