#!/usr/bin/env python3
"""The consistent-cut protocol of docs/transactions.md, tried in every order in which its messages can come.

    cut.py                    every case as it is: each must be clean
    cut.py mutations          every rule left out once: each must be caught
    cut.py CASE [MUTATION]    one case, perhaps without a rule

A case is a handful of shards with transactions over several of them, writes on one of them that may wait until their
client has *heard* of something, readers of several shards, and sessions that read one shard after another. Every state
that can be reached is visited. It's wrong if

- a reader sees a transaction on one of its shards and not on another (FRACTURE),
- a reader sees an effect and not its cause (CAUSALITY),
- a session has seen a transaction on one shard and then doesn't see it on another (BACKWARDS),
- a reader can never finish (DEADLOCK).

Bounds on how long a shard holds, lost messages and crashes aren't here: each of them ends a reader that has told
nobody anything, and whatever a shard withheld for it is told as if it had released.
"""
import sys
from collections import deque
from typing import NamedTuple


class Case(NamedTuple):
    transactions: dict  # name: the shards that it writes on
    writes: dict  # name: (its shard, what its client must have heard of first)
    readers: tuple  # the shards of each
    sessions: tuple = ()  # the shards that each reads, one after another
    aborts: bool = False  # transactions may abort
    voted: tuple = ()  # what shards have voted for before all begins: (transaction, shard)


CASES = {
    # Two writes of which one causes the other, and a transaction that causes a third.
    "causes": Case({"T": (0, 1)}, {"a": (1, None), "b": (0, "a"), "e": (0, "T")}, ((0, 1),)),
    # What one reader tells makes somebody write.
    "readers": Case({}, {"a": (1, None), "b": (0, "a")}, ((0, 1), (0, 1))),
    # One transaction, two readers.
    "shared": Case({"T": (0, 1)}, {}, ((0, 1), (0, 1)), aborts=True),
    # Two transactions and two readers, each of which may see another of them pending.
    "crossed": Case({"T": (0, 1), "U": (0, 1)}, {}, ((0, 1), (0, 1)), voted=(("T", 0), ("U", 1))),
    # Readers without a shard in common, whose transactions hold each other up.
    "apart": Case({"T": (0, 2), "U": (3, 1)}, {}, ((0, 1), (2, 3)), voted=(("T", 0), ("U", 3))),
    # Three shards, and transactions that chain them.
    "chain": Case({"T": (0, 1), "U": (1, 2)}, {}, ((0, 1, 2),), aborts=True),
    # Reads of one shard each.
    "session": Case({"T": (0, 1)}, {}, ((0, 1),), sessions=((0, 1),), aborts=True),
}

# Which case catches which rule's absence.
MUTATIONS = {
    "votes-told": ("causes", "votes aren't withheld"),
    "acknowledgements-told": ("causes", "acknowledgements aren't withheld"),
    "reads-told": ("causes", "reads of one shard tell what is withheld"),
    "scans-told": ("readers", "a reader tells what another one withholds"),
    "pending-ignored": ("causes", "what is pending isn't settled"),
    "released-early": ("causes", "each shard is released as soon as it is open"),
    "not-closed": ("crossed", "settled shards aren't closed before they are released"),
    "let-through-forgotten": ("crossed", "what was let through for others' sake isn't settled"),
    "position-moves": ("crossed", "a vote passes if the snapshot that was opened again has its prepare"),
    "not-shared": ("apart", "readers don't let through what the others settle"),
    "not-passed-on": ("apart", "shards that a reader doesn't read aren't told what it settles"),
    "word-forgotten": ("apart", "a shard forgets what was to be let through before it had anything to settle"),
    "session-rushes": ("session", "reads of one shard don't wait for what was prepared before they came"),
}


class Hold(NamedTuple):
    """What a shard has of a reader."""

    # new; open: it withholds; settling: it lets through what it permits; closed: as open; word: it isn't read, only
    # told what to let through; released
    mode: str = "new"
    first: int = 0  # the snapshot's length when it was first opened
    position: int = 0  # and now
    pending: frozenset = frozenset()  # what was pending in it at first, as long as it wasn't opened again
    permits: frozenset = frozenset()  # what others want let through
    passed: frozenset = frozenset()  # what was let through since it was last opened


class Reader(NamedTuple):
    phase: str  # open, settle, close, scan, done
    known: frozenset  # what it settles
    todo: frozenset  # the shards that haven't answered
    holds: tuple  # by shard


class State(NamedTuple):
    logs: tuple
    votes: frozenset
    decided: frozenset  # (transaction, committed)
    heard: frozenset  # what clients may have heard of
    readers: tuple
    sessions: tuple  # (how many shards it has read, when the present read came: what was pending then or None, seen)


WITHHOLDS = ("open", "settling", "closed")
SETTLES = ("settling", "word")


class Model:
    def __init__(self, case, mutation=""):
        self.case, self.mutation = case, mutation
        members = [s for shards in case.transactions.values() for s in shards] + [s for r in case.readers for s in r]
        self.shards = range(max(members) + 1)

    def start(self):
        fresh = tuple(Hold() for _ in self.shards)
        readers = tuple(Reader("open", frozenset(), frozenset(shards), fresh) for shards in self.case.readers)
        sessions = tuple((0, None, frozenset()) for _ in self.case.sessions)
        logs = tuple(tuple("P" + t for t, at in self.case.voted if at == s) for s in self.shards)
        return State(logs, frozenset(self.case.voted), frozenset(), frozenset(), readers, sessions)

    # What a log says.

    def ended(self, log, t):
        return "C" + t in log or "A" + t in log

    def pending(self, log):
        return frozenset(t for t in self.case.transactions if "P" + t in log and not self.ended(log, t))

    def visible(self, log):
        return frozenset(t for t in self.case.transactions if "C" + t in log) | frozenset(
            w for w in self.case.writes if w in log
        )

    # What a shard tells, and what it doesn't.

    def withheld(self, state, shard, index, but=None):
        """Whether an answer from the state after entry `index` must wait."""
        return any(
            r.holds[shard].mode in WITHHOLDS and index >= r.holds[shard].position
            for i, r in enumerate(state.readers)
            if i != but
        )

    def vote(self, state, t, shard):
        """The readers after the vote was let through; nothing if it's withheld."""
        if self.mutation == "votes-told":
            return state.readers
        index = state.logs[shard].index("P" + t)
        readers = list(state.readers)
        for i, r in enumerate(readers):
            hold = r.holds[shard]
            seen = hold.position if self.mutation == "position-moves" else hold.first
            if hold.mode not in WITHHOLDS or index < seen:
                continue
            if hold.mode != "settling" or t not in hold.permits:
                return None
            passed = hold.passed if self.mutation == "let-through-forgotten" else hold.passed | {t}
            readers[i] = self.put(r, shard, hold._replace(passed=passed))
        return tuple(readers)

    def put(self, reader, shard, hold):
        holds = list(reader.holds)
        holds[shard] = hold
        return reader._replace(holds=tuple(holds))

    # What can happen.

    def successors(self, state):
        steps = []

        def step(name, **changes):
            steps.append((name, state._replace(**changes)))

        def append(shard, entry):
            logs = list(state.logs)
            logs[shard] += (entry,)
            return tuple(logs)

        verdicts = dict(state.decided)
        for t, participants in self.case.transactions.items():
            for s in participants:
                log = state.logs[s]
                if "P" + t not in log and t not in verdicts:
                    step(f"{s} prepares {t}", logs=append(s, "P" + t))
                elif "P" + t in log and (t, s) not in state.votes and t not in verdicts:
                    readers = self.vote(state, t, s)
                    if readers is not None:
                        step(f"{s} votes for {t}", votes=state.votes | {(t, s)}, readers=readers)
                if t in verdicts and "P" + t in log and not self.ended(log, t):
                    step(f"{s} finishes {t}", logs=append(s, ("C" if verdicts[t] else "A") + t))
            if t not in verdicts and all((t, s) in state.votes for s in participants):
                step(f"{t} is committed", decided=state.decided | {(t, True)})
            if self.case.aborts and t not in verdicts:
                step(f"{t} is aborted", decided=state.decided | {(t, False)})
            if verdicts.get(t) and t not in state.heard and all("C" + t in state.logs[s] for s in participants):
                step(f"{t} is acknowledged", heard=state.heard | {t})
        for w, (s, cause) in self.case.writes.items():
            log = state.logs[s]
            if w not in log:
                if cause is None or cause in state.heard:
                    step(f"{s} writes {w}", logs=append(s, w))
            elif w not in state.heard:
                told = not self.withheld(state, s, log.index(w))
                if told or self.mutation == "acknowledgements-told":
                    step(f"{w} is acknowledged", heard=state.heard | {w})
                if told or self.mutation == "reads-told":
                    step(f"somebody reads {w}", heard=state.heard | {w})
        for i in range(len(state.readers)):
            self.read(state, i, step)
        for i in range(len(state.sessions)):
            self.look(state, i, step)
        return steps

    def look(self, state, i, step):
        done, met, seen = state.sessions[i]
        shards = self.case.sessions[i]
        if done == len(shards):
            return

        def put(session):
            sessions = list(state.sessions)
            sessions[i] = session
            return tuple(sessions)

        s = shards[done]
        log = state.logs[s]
        if met is None:
            met = frozenset() if self.mutation == "session-rushes" else self.pending(log)
            step(f"session {i} asks {s}", sessions=put((done, met, seen)))
        elif all(self.ended(log, t) for t in met) and not self.withheld(state, s, len(log) - 1):
            now = self.visible(log)
            lost = [t for t in seen if s in self.case.transactions.get(t, ()) and t not in now]
            step(f"session {i} reads {s}", sessions=put((done + 1, None, seen | now | {"!" + t for t in lost})))

    def read(self, state, i, step):
        reader = state.readers[i]
        mine = self.case.readers[i]

        def put(reader, others=None, **changes):
            readers = list(others or state.readers)
            readers[i] = reader
            return dict(readers=tuple(readers), **changes)

        def asked(known):
            elsewhere = set() if self.mutation == "not-passed-on" else {
                s for t in known for s in self.case.transactions[t]
            }
            return frozenset(mine) | elsewhere

        def settle(reader, known):
            return reader._replace(phase="settle", known=known, todo=asked(known))

        def scan(reader):
            return reader._replace(phase="scan", todo=frozenset(mine))

        def settled(reader, shard):
            reader = reader._replace(todo=reader.todo - {shard})
            if reader.todo:
                return reader
            if self.mutation == "not-closed":
                return scan(reader)
            return reader._replace(phase="close", todo=frozenset(mine))

        if reader.phase == "open":
            for s in reader.todo:
                log = state.logs[s]
                hold = Hold("open", len(log), len(log), self.pending(log))
                if self.mutation == "pending-ignored":
                    hold = hold._replace(pending=frozenset())
                if self.mutation == "released-early":
                    hold = hold._replace(mode="released", pending=frozenset())
                opened = self.put(reader, s, hold)
                opened = opened._replace(todo=reader.todo - {s})
                if not opened.todo:
                    known = frozenset().union(*(opened.holds[o].pending for o in mine))
                    opened = settle(opened, known) if known else scan(opened)
                step(f"reader {i} opens {s}", **put(opened))
        elif reader.phase == "settle":
            for s in reader.todo:
                hold = reader.holds[s]
                if hold.mode not in SETTLES or not reader.known <= hold.permits:
                    # The message comes: whoever settles something here settles it, too.
                    mode = "settling" if s in mine else "word"
                    told = self.put(reader, s, hold._replace(mode=mode, permits=hold.permits | reader.known))
                    step(f"{s} hears what reader {i} settles", readers=self.unite(put(told)["readers"], s, i))
                    continue
                if s not in mine:
                    step(f"{s} knows what reader {i} settles", **put(settled(reader, s)))
                    continue
                must = hold.pending | hold.passed
                if not must <= reader.known:
                    step(f"reader {i} learns from {s}", **put(settle(reader, reader.known | must)))
                elif all(self.ended(state.logs[s], t) for t in must):
                    if must:
                        hold = hold._replace(position=len(state.logs[s]), pending=frozenset(), passed=frozenset())
                    step(f"reader {i} has settled {s}", **put(settled(self.put(reader, s, hold), s)))
        elif reader.phase == "close":
            for s in reader.todo:
                hold = reader.holds[s]
                if hold.passed:
                    step(f"reader {i} learns late from {s}", **put(settle(reader, reader.known | hold.passed)))
                    continue
                closed = self.put(reader, s, hold._replace(mode="closed"))
                closed = closed._replace(todo=reader.todo - {s})
                step(f"reader {i} closes {s}", **put(closed if closed.todo else scan(closed)))
        elif reader.phase == "scan":
            for s in reader.todo:
                hold = reader.holds[s]
                if hold.mode != "released":
                    step(f"reader {i} releases {s}", **put(self.put(reader, s, hold._replace(mode="released"))))
                    if self.mutation != "released-early":
                        continue
                told = not self.withheld(state, s, hold.position - 1, but=i)
                if not told and self.mutation != "scans-told":
                    continue
                answered = reader._replace(todo=reader.todo - {s})
                if answered.todo:
                    step(f"reader {i} has read {s}", **put(answered))
                else:
                    seen = frozenset().union(*self.seen(state, reader, mine))
                    # What was only said for its sake is forgotten.
                    holds = tuple(Hold("released") if h.mode == "word" else h for h in reader.holds)
                    done = answered._replace(phase="done", holds=holds)
                    step(f"reader {i} is done with {s}", **put(done, heard=state.heard | seen))

    def unite(self, readers, shard, by):
        """The readers, after one of them has told a shard what it settles."""
        if self.mutation == "not-shared":
            return readers
        settling = [r.holds[shard] for r in readers if r.holds[shard].mode in SETTLES]
        if self.mutation == "word-forgotten":
            # A word reaches those who settle at the moment, and stays with nobody.
            settling = [h for h in settling if h.mode == "settling"] + [readers[by].holds[shard]]
        union = frozenset().union(*(hold.permits for hold in settling))
        united = []
        for r in readers:
            hold = r.holds[shard]
            reached = hold.mode in SETTLES
            united.append(self.put(r, shard, hold._replace(permits=union)) if reached else r)
        return tuple(united)

    def seen(self, state, reader, mine):
        return [self.visible(state.logs[s][: reader.holds[s].position]) for s in mine]

    # What may never be.

    def violation(self, state):
        for i, reader in enumerate(state.readers):
            mine = self.case.readers[i]
            if reader.phase != "done" or not any(reader.holds[s].position for s in mine):
                continue
            seen = dict(zip(mine, self.seen(state, reader, mine)))
            everything = frozenset().union(*seen.values())
            for t, participants in self.case.transactions.items():
                if len({t in seen[s] for s in participants if s in seen}) > 1:
                    return f"FRACTURE: reader {i} sees half of {t}"
            for w, (_, cause) in self.case.writes.items():
                where = self.case.transactions.get(cause) or [self.case.writes[cause][0]] if cause else []
                if w in everything and cause and cause not in everything and set(where) & set(mine):
                    return f"CAUSALITY: reader {i} sees {w} and not {cause}"
        for i, (_, _, seen) in enumerate(state.sessions):
            lost = [x for x in seen if x[0] == "!"]
            if lost:
                return f"BACKWARDS: session {i} doesn't see {lost[0][1:]} any more"
        return None

    def run(self):
        """How many states there are, and what's wrong, if something is."""
        start = self.start()
        came_from, queue = {start: None}, deque([start])

        def path(state):
            steps = []
            while came_from[state]:
                state, name = came_from[state]
                steps.append(name)
            return "; ".join(reversed(steps))

        while queue:
            state = queue.popleft()
            if self.is_over(state):
                continue
            steps = self.successors(state)
            if not steps:
                return len(came_from), f"DEADLOCK by: {path(state)}"
            for name, new in steps:
                wrong = self.violation(new)
                if wrong:
                    return len(came_from), f"{wrong} by: {path(state)}; {name}"
                new = self.forgotten(new)
                if new not in came_from:
                    came_from[new] = (state, name)
                    queue.append(new)
        return len(came_from), None

    def is_over(self, state):
        """Whether everyone has read what they wanted to."""
        sessions = zip(state.sessions, self.case.sessions)
        return all(r.phase == "done" for r in state.readers) and all(s[0] == len(shards) for s, shards in sessions)

    def forgotten(self, state):
        """The same without what nobody will ask for again: what readers had that are done, and were right."""
        holds = tuple(Hold("released") for _ in self.shards)
        done = Reader("done", frozenset(), frozenset(), holds)
        return state._replace(readers=tuple(done if r.phase == "done" else r for r in state.readers))


def main(arguments):
    failed = False
    if arguments == ["mutations"]:
        for mutation, (case, rule) in MUTATIONS.items():
            states, wrong = Model(CASES[case], mutation).run()
            failed |= wrong is None
            print(f"{mutation} ({rule}), {case}: {wrong or f'NOT CAUGHT in {states} states'}", flush=True)
        return failed
    names, mutation = (arguments[:1], "".join(arguments[1:])) if arguments else (CASES, "")
    for name in names:
        states, wrong = Model(CASES[name], mutation).run()
        failed |= wrong is not None
        print(f"{name}: {states} states; {wrong or 'clean'}", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
