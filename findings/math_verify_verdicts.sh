#!/usr/bin/env bash
# math-verify calls some different answers equal, and some equal answers different.
#
# What happens: verify(parse(gold), parse(reply)) is True for the pair (1,2) and the set {1,2}, for 50 km and 50 miles,
# for 12 in base 8 and 12, for the variables C and c, and for 3% both against 3 and against 0.03. It is False for 1e3
# against 1000, which is read as the product of 1, Euler's number and 3. x>3 and the interval (3,oo) are equal if the
# inequality is the gold answer, and differ the other way round. Nothing is printed.
#
# What one would expect: one verdict for a pair in either order, and different answers for different units, bases,
# letters and kinds of brackets.
#
# Why it matters here: as a reward, the first kind pays for wrong answers and the second refuses right ones, and neither
# shows in a curve. burnish compares tuples, sets, intervals, units and words by its own code before math-verify sees
# them (burnish/rewards/library/answers.py), and docs/en/grading.md counts both on labelled pairs.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check math-verify==0.9.0 latex2sympy2_extended==1.11.0
cat > "$folder/try.py" <<'PYTHON'
from importlib.metadata import version

from math_verify import parse, verify

print("math-verify", version("math-verify"), "latex2sympy2_extended", version("latex2sympy2_extended"))
for gold, reply, seen in (
    (r"$(1,2)$", r"$\{1,2\}$", True),
    (r"$50\text{ km}$", r"$50\text{ miles}$", True),
    (r"$12_8$", r"$12$", True),
    (r"$C$", r"$c$", True),
    (r"$3\%$", r"$3$", True),
    (r"$3\%$", r"$0.03$", True),
    (r"$x>3$", r"$(3,\infty)$", True),
    (r"$(3,\infty)$", r"$x>3$", False),
    (r"$1e3$", r"$1000$", False),
):
    verdict = verify(parse(gold), parse(reply))
    print(f"{gold:20}{reply:20}{verdict}")
    assert verdict is seen, (gold, reply, verdict)
print("as described")
PYTHON
"$folder/venv/bin/python" "$folder/try.py"
# Seen:
# math-verify 0.9.0 latex2sympy2_extended 1.11.0
# $(1,2)$             $\{1,2\}$           True
# $50\text{ km}$      $50\text{ miles}$   True
# $12_8$              $12$                True
# $C$                 $c$                 True
# $3\%$               $3$                 True
# $3\%$               $0.03$              True
# $x>3$               $(3,\infty)$        True
# $(3,\infty)$        $x>3$               False
# $1e3$               $1000$              False
# as described
