"""Comparison of tool-call arguments: read them as recorded, compare them, explain the verdict.

There are four modes. `exact`: equal as parsed. `tau2`: tau2-bench's own rule. `bfcl`: the rule of
the Berkeley Function-Calling Leaderboard's checker. `deep`, the default, is defined by `canonical`,
which maps a value to a text so that two values mean the same exactly when their texts are equal.
So `deep` is an equivalence relation by construction, and comparing a call with many gold actions
means comparing texts, which sort, hash and need no recursion.

`equal_texts` gives the same verdict but writes no texts for parts that are plainly equal, which is
several times faster for a single pair. Tests compare the two.

Objects have string keys, as in JSON. Values may be nested at least 1,000 levels deep; far beyond
that `parse_arguments` reports a problem and the comparisons raise `InputError`.

Source: docs/method.md, "Comparison of arguments".
"""

from stages.core.arguments.bfcl import bfcl_answer
from stages.core.arguments.canonical import NO_RULES, Prepared, ToolRules, canonical, prepare, share
from stages.core.arguments.difference import Difference
from stages.core.arguments.explain import differences
from stages.core.arguments.modes import MODES, Mode, equal, matched_arguments
from stages.core.arguments.pairwise import equal_texts
from stages.core.arguments.reading import PYTHON_REPR, Parsed, parse_arguments

__all__ = [
    "MODES",
    "NO_RULES",
    "PYTHON_REPR",
    "Difference",
    "Mode",
    "Parsed",
    "Prepared",
    "ToolRules",
    "bfcl_answer",
    "canonical",
    "differences",
    "equal",
    "equal_texts",
    "matched_arguments",
    "parse_arguments",
    "prepare",
    "share",
]
