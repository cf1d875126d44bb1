#!/usr/bin/env python3
"""The switch of docs/resharding.md, tried in every order in which its messages can come.

    switch.py --all               every case as it is: each must be clean; every rule left out once: each must be caught
    switch.py CASE [MUTATION]     one case, perhaps without a rule
    switch.py --check             what isn't tried for the sake of speed changes nothing

A case is a handful of groups, each of which serves keys: those that are left, those that take over, and perhaps one that
has nothing to do with it. Clients write single keys, run transactions over several groups that their votes commit
(docs/decisions/0012, 0015), and read, by routers that know the old topology or the new one. The coordinator switches, gives
up and tries again, and switches back. Every state that can be reached is visited. It's wrong if

- what a client was told is done isn't there in the end, or isn't there any more (LOST),
- something is done twice (TWICE),
- half of a transaction is there in the end, or of what a client was told isn't done, something (HALF),
- a reader doesn't see what somebody had been told before it began (PAST), or a key not once (MIXTURE),
- a reader of several groups sees an effect and not its cause (CAUSALITY),
- two groups would take a write for the same key (BOTH),
- there is a state from which nobody can bring all to its end (STUCK).

What is kept of a group is its log: what Raft has committed. So leaders may change at any time, and what only a leader has
is lost then: transactions that are open, what a cut withholds, answers that are on their way. The coordinator keeps its
phase and its verdicts. What it had sent before another led comes late, or twice: so a request to seal or to unseal that
was ever made may come at any time. So may a write that was ever sent.

How long anything waits isn't here: that an attempt is given up, and that a router is taken to be gone, may happen at any time.

What keeps the number of states small: a step that commutes with all that others can do before it, and keeps none of
them from anything, is **free**: it is taken at once. What makes it free stands beside it.
"""
import sys
import time
from collections import deque
from typing import NamedTuple

sys.dont_write_bytecode = True
from switch_rules import Model  # noqa: E402


class Case(NamedTuple):
    what: str  # what it is for
    sides: tuple  # the groups that serve in turn, each with its keys: before the switch, after it
    others: dict = {}  # groups that serve all the time
    writes: dict = {}  # name: (its keys, its router, what its client must have been told of first)
    transactions: dict = {}  # name: (its keys, its router)
    readers: tuple = ()  # (the keys, the router) of reads that see all that anybody was told
    tokens: tuple = ()  # (the write whose position it has, the router) of reads by any replica
    cuts: tuple = ()  # (the keys, the router) of reads that see one state
    switches: int = 1  # the second one goes back
    attempts: int = 1  # how often it is tried
    crashes: bool = False  # routers may die, and leaders of groups that have transactions open
    late: bool = True  # writes may come late


SPLIT = ({"S": "ab"}, {"T": "a", "U": "b"})
MERGE = ({"A": "a", "B": "b"}, {"M": "ab"})

CASES = {
    "writes": Case(
        "a split, with writes of both parts by routers that know different topologies, and a reader",
        SPLIT, writes={"w": ("a", 0, None), "v": ("b", 1, None)}, readers=(("a", 1),), attempts=2,
    ),
    "batch": Case(
        "a write of both parts at once, whose answer may be lost",
        SPLIT, writes={"w": ("ab", 0, None)}, readers=(("ab", 1),), attempts=2,
    ),
    "token": Case(
        "a reader of any replica that has the position of a write",
        SPLIT, writes={"w": ("a", 0, None), "v": ("a", 1, "w")}, tokens=(("w", 1), ("v", 0)),
    ),
    "transfer": Case(
        "a transaction over a group that is split and one that isn't; its router and the leaders may die",
        SPLIT, {"Q": "q"}, transactions={"X": ("aq", 0)}, readers=(("a", 1),), crashes=True,
    ),
    "attempts": Case(
        "the same, given up and tried again, and nobody dies",
        SPLIT, {"Q": "q"}, transactions={"X": ("aq", 0)}, attempts=2,
    ),
    "spread": Case(
        "a transaction over both parts and a third group",
        SPLIT, {"Q": "q"}, transactions={"X": ("abq", 0)}, crashes=True,
    ),
    "merge": Case(
        "a merge of two groups over which a transaction goes, and a scan",
        MERGE, transactions={"X": ("ab", 0)}, readers=(("ab", 1),), crashes=True,
    ),
    "merged": Case(
        "a merge, with writes and a scan",
        MERGE, writes={"w": ("a", 0, None), "v": ("b", 1, None)}, readers=(("ab", 1),),
    ),
    "reverse": Case(
        "a split and the way back, with writes",
        SPLIT, writes={"w": ("a", 0, None), "v": ("b", 1, None)}, readers=(("ab", 0),), switches=2, attempts=2, late=False,
    ),
    "hesitant": Case(
        "a split and the way back, either of which may be given up once",
        SPLIT, writes={"w": ("a", 0, None)}, readers=(("a", 1),), switches=2, attempts=3,
    ),
    "returned": Case(
        "a split and the way back, with a transaction",
        SPLIT, {"Q": "q"}, transactions={"X": ("aq", 0)}, switches=2, attempts=2, crashes=True,
    ),
    "cut": Case(
        "a read of one state while a group of it is split, and a write that is caused by another",
        SPLIT, {"Q": "q"}, writes={"w": ("a", 0, None), "e": ("q", 1, "w")}, cuts=(("aq", 1),),
    ),
}  # fmt: skip

# Of these every order can be tried in a few minutes.
SMALL = ("batch", "token", "cut", "merged", "spread", "transfer", "writes", "attempts")

# Which case catches it when a rule is left out, and what the rule says.
MUTATIONS = {
    "reads-go-on": ("writes", "what is sealed refuses reads, too"),
    "early": ("writes", "nothing is decided before all that take over have the last entries"),
    "older-adoption": ("writes", "what was taken over in an attempt that was given up doesn't count in the next"),
    "prepared-dropped": ("transfer", "what is prepared is carried along"),
    "ended-dropped": ("transfer", "what has committed, and is remembered for it, is carried along"),
    "stale-write": ("writes", "what is sealed refuses writes, whatever their router knows"),
    "reverse-late": ("reverse", "the way back begins where the switch was"),
    "requests-dropped": ("writes", "what requests were told is carried along"),
    "give-up-unwritten": ("writes", "an attempt is given up in the log before anything is unsealed"),
    "late-seal": ("attempts", "an attempt that was given up can't seal any more"),
    "heirs-unknown": ("transfer", "whoever ends a transaction looks for a shard's successors"),
    "branch-forgotten": ("transfer", "a transaction that has lost a branch with the seal isn't committed"),
    "finished-behind": ("transfer", "what is sealed finishes nothing"),
    "estates-apart": ("merge", "what is prepared on several sources becomes one"),
    "votes-borrowed": ("merge", "what is prepared says whose votes it stands for"),
    "one-heir": ("transfer", "every successor gets what is prepared, and all must have ended it"),
    "mixture": ("merged", "a read that is refused in part begins anew as a whole"),
    "replica-unaware": ("token", "a replica answers from what it has of the shard's row, whatever the topology says"),
    "cut-kept": ("cut", "a seal ends the cuts that withhold"),
    "batch-again": ("batch", "a write of several successors is looked up before it is said not to be done"),
}


def run(model):
    """How many states there are, and what's wrong, if something is."""
    start = model.start()
    numbers, states, before, from_ = {start: 0}, [start], [[]], [None]
    goals, queue = [], deque([0])
    while queue:
        n = queue.popleft()
        state = states[n]
        if model.is_over(state):
            wrong = model.verdict(state)
            if wrong:
                return len(states), f"{wrong} by: {path(states, from_, n)}"
            model.note(state)
            goals.append(n)
        for name, new, wrong in model.further(state):
            if wrong:
                return len(states), f"{wrong} by: {path(states, from_, n)}; {name}"
            m = numbers.get(new)
            if m is None:
                m = numbers[new] = len(states)
                states.append(new)
                before.append([])
                from_.append((n, name))
                queue.append(m)
            before[m].append(n)
    # Whatever happened, all can be brought to its end.
    reach, todo = bytearray(len(states)), list(goals)
    for n in goals:
        reach[n] = 1
    while todo:
        for m in before[todo.pop()]:
            if not reach[m]:
                reach[m] = 1
                todo.append(m)
    stuck = reach.find(0)
    if stuck >= 0:
        return len(states), f"STUCK by: {path(states, from_, stuck)}"
    return len(states), None


def path(states, from_, n):
    steps = []
    while from_[n]:
        n, name = from_[n]
        steps.append(name)
    return "; ".join(reversed(steps))


def tell(columns, begun, states, result):
    print(" | ".join([*columns, f"{states:7}", f"{time.monotonic() - begun:5.1f} s", result]), flush=True)


def every_case():
    """Whether each case is clean."""
    right = True
    for name, case in CASES.items():
        begun = time.monotonic()
        states, wrong = run(Model(case))
        right &= wrong is None
        tell([f"{name:8}"], begun, states, wrong or "clean")
    return right


def every_mutation():
    """Whether each is caught."""
    right = True
    for mutation, (name, _) in MUTATIONS.items():
        begun = time.monotonic()
        states, wrong = run(Model(CASES[name], mutation))
        right &= wrong is not None
        tell([f"{mutation:17}", f"{name:8}"], begun, states, wrong.split(" by:")[0] if wrong else "NOT CAUGHT")
    return right


def check():
    """Whether the same may come of it where every order is really tried."""
    right = True
    for name in SMALL:
        begun = time.monotonic()
        few, all_ = Model(CASES[name]), Model(CASES[name], plain=True)
        results = run(few), run(all_)
        same = few.ends == all_.ends and results[0][1] == results[1][1]
        right &= same
        tell([f"{name:8}", f"{results[0][0]:6}"], begun, results[1][0], "the same" if same else "DIFFERS")
    return right


def main(arguments):
    plain = "--plain" in arguments
    names = [argument for argument in arguments if not argument.startswith("--")]
    if "--all" in arguments:
        # Both are run, whatever comes of the first.
        return not all([every_case(), every_mutation()])
    if "--check" in arguments:
        return not check()
    if not names or names[0] not in CASES or any(name not in MUTATIONS for name in names[1:]):
        print(__doc__, *(f"{name:8} {case.what}" for name, case in CASES.items()), sep="\n")
        print("", *(f"{name:17} leaves out: {rule}" for name, (_, rule) in MUTATIONS.items()), sep="\n")
        return 2
    begun = time.monotonic()
    states, wrong = run(Model(CASES[names[0]], "".join(names[1:2]), plain))
    tell(names, begun, states, wrong or "clean")
    return wrong is not None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
