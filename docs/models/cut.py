#!/usr/bin/env python3
"""The consistent-cut protocol of docs/transactions.md, tried in every order in which its messages can come.

    cut.py --all              every case as it is: each must be clean; every rule left out once: each must be caught
    cut.py --check            what isn't tried for the sake of speed changes nothing
    cut.py CASE [MUTATION]    one case, perhaps without a rule; with --plain every order is really tried

A case is a handful of shards with transactions over several of them, writes on one of them that may wait until their
client has *heard* of something, readers of several shards, and sessions that read one shard after another. Every state
that can be reached is visited. It's wrong if

- a reader sees a transaction on one of its shards and not on another (FRACTURE),
- a reader sees an effect and not its cause (CAUSALITY),
- a reader doesn't see what somebody had heard of before it began (STALE),
- a session doesn't see what somebody had heard of before it asked, itself on another shard perhaps (BACKWARDS),
- somebody can never finish (DEADLOCK).

Bounds on how long a shard holds, lost messages and crashes aren't here: each of them ends a reader that has told
nobody anything, and whatever a shard withheld for it is told as if it had released.

What keeps the number of states small:

- A shard's log isn't kept, but what can be seen in it, what is pending in it, and what it has voted for. Something is
  after a snapshot if the snapshot lacks it, and a snapshot is later than another if it has more. So an entry that shows
  nothing (a prepare, an abort) makes nobody wait. A real shard waits for those, too, and tells less.
- What can't matter any more is forgotten (`tidy`): votes for what is decided, all of a reader that has its answers.
- Of states that differ in the names of shards, transactions and readers alone, one is visited (`alike`).
- A step that commutes with all that others can do before it, and keeps none of them from anything, is **free**: it is
  taken at once, and the orders in which it comes later aren't tried. What makes it free stands beside each kind of step.
"""
import sys
import time
from collections import deque
from itertools import permutations
from typing import NamedTuple


class Case(NamedTuple):
    what: str  # what it is for
    transactions: dict  # name: the shards that it writes on
    writes: dict  # name: (its shard, what its client must have heard of first)
    readers: tuple  # the shards of each
    sessions: tuple = ()  # the shards that each reads, one after another
    aborts: bool = False  # transactions may abort
    voted: tuple = ()  # what shards have voted for before all begins: (transaction, shard)
    derived: tuple = ()  # writes that come of their cause by themselves, into a table that no reader reads


TWO, BOTH = {"T": (0, 1), "U": (0, 1)}, ((0, 1), (0, 1))
CHAIN = {"T": (0, 1), "U": (1, 2)}

CASES = {
    "causes": Case(
        "two writes of which one causes the other, and a transaction that causes a third",
        {"T": (0, 1)}, {"a": (1, None), "b": (0, "a"), "e": (0, "T")}, ((0, 1),),
    ),
    "readers": Case("what one reader tells makes somebody write", {}, {"a": (1, None), "b": (0, "a")}, BOTH),
    "tables": Case(
        "what one statement or transaction writes into the readers' table and, because of that, into another one",
        {}, {"a": (1, None), "z": (1, "a"), "b": (0, "z")}, BOTH, derived=("z",),
    ),
    "shared": Case("one transaction, two readers", {"T": (0, 1)}, {}, BOTH, aborts=True),
    "crossed": Case(
        "two readers, each of which may see another of two transactions pending",
        TWO, {}, BOTH, voted=(("T", 0), ("U", 1)),
    ),
    "meeting": Case("the same, from before anything was prepared, and transactions may abort", TWO, {}, BOTH, aborts=True),
    "apart": Case(
        "readers without a shard in common, whose transactions hold each other up",
        {"T": (0, 2), "U": (3, 1)}, {}, ((0, 1), (2, 3)), voted=(("T", 0), ("U", 3)),
    ),
    "chain": Case("three shards, and transactions that chain them", CHAIN, {}, ((0, 1, 2),), aborts=True),
    "links": Case("the same, with a reader of each link: what one settles, the other learns of", CHAIN, {}, ((0, 1), (1, 2))),
    "session": Case("reads of one shard each", {"T": (0, 1)}, {}, ((0, 1),), sessions=((0, 1),), aborts=True),
    "after": Case("who has heard of what a reader saw", CHAIN, {}, ((0, 1),), sessions=((2,),), aborts=True),
}  # fmt: skip

# Those of which every order can be tried in a few minutes.
SMALL = ("causes", "readers", "tables", "shared", "chain", "session", "after", "crossed", "apart")

# Which case catches it when a rule is left out, and what the rule says.
MUTATIONS = {
    "votes-told": ("causes", "votes are withheld"),
    "acknowledgements-told": ("causes", "acknowledgements are withheld"),
    "reads-told": ("causes", "reads of one shard don't tell what is withheld"),
    "scans-told": ("readers", "a reader doesn't tell what another one withholds"),
    "tables-apart": ("tables", "what goes with a write to a reader's table is withheld as that is, in whatever table it is"),
    "pending-ignored": ("causes", "what is pending is settled"),
    "released-early": ("causes", "no shard is released before all are open"),
    "not-closed": ("crossed", "settled shards are closed before any is released"),
    "let-through-forgotten": ("crossed", "what was let through for others' sake is settled"),
    "position-moves": ("crossed", "a vote passes if the snapshot that was opened first has its prepare, not a later one"),
    "older-put": ("crossed", "a snapshot is opened again only for a newer one, also by a request that was repeated"),
    "opened-twice": ("readers", "a request to open that comes twice opens once"),
    "not-shared": ("apart", "readers let through what the others settle"),
    "not-passed-on": ("apart", "shards that a reader doesn't read are told what it settles"),
    "word-forgotten": ("apart", "a shard remembers what is to be let through until it has something to settle"),
    "session-rushes": ("session", "reads of one shard wait for what was prepared before they came"),
}

# Sets of transactions, of transactions and writes, and of shards are the bits of a number.


class Shard(NamedTuple):
    sees: int  # the writes and committed transactions in its log
    pending: int  # what is prepared and hasn't ended
    voted: int  # the undecided transactions that it has told of its vote for


# What a shard has of a reader: nothing yet; it withholds; it lets through what it permits; it withholds again; it isn't
# read, only told what to let through; it withholds nothing any more.
NEW, OPEN, SETTLING, CLOSED, WORD, RELEASED = range(6)
WITHHOLDS = (OPEN, SETTLING, CLOSED)
SETTLES = (SETTLING, WORD)


class Hold(NamedTuple):
    mode: int = NEW
    sees: int = 0  # what its snapshot has
    early: int = 0  # what was prepared and had no vote when the snapshot was first opened
    pending: int = 0  # what was pending then, as long as it wasn't opened again
    permits: int = 0  # what is let through
    passed: int = 0  # what was let through since it was last opened
    spare: int = -1  # a snapshot that a repeated request has opened, and not put here yet (without the rule alone)


class Reader(NamedTuple):
    phase: str  # open, settle, close, scan, done
    known: int  # what it settles
    todo: int  # its shards that haven't answered
    unheard: int  # all shards that haven't heard yet what it settles
    owed: int  # what somebody had heard of when it began
    holds: tuple  # by shard


class State(NamedTuple):
    shards: tuple
    committed: int
    aborted: int
    heard: int  # what anybody has heard of
    readers: tuple
    sessions: tuple  # (how many shards it has read, what the present read waits for or -1, what it must see, what it has lost)


class Model:
    def __init__(self, case, mutation="", plain=False):
        self.case, self.mutation, self.plain = case, mutation, plain
        self.ends = None  # what readers may see, if somebody wants to know
        self.names = list(case.transactions) + list(case.writes)
        bit = {name: 1 << i for i, name in enumerate(self.names)}
        members = [s for at in case.transactions.values() for s in at] + [s for r in case.readers for s in r]
        self.shards = range(max(members + [s for s, _ in case.writes.values()]) + 1)
        self.transactions = [(name, bit[name], at) for name, at in case.transactions.items()]
        self.writes = [(name, bit[name], s, bit.get(cause, 0)) for name, (s, cause) in case.writes.items()]
        self.readers = [sum(1 << s for s in r) for r in case.readers]
        # By shard: the transactions that write there, and the writes.
        self.parts = [sum(t for _, t, at in self.transactions if s in at) for s in self.shards]
        self.own = [sum(w for _, w, at, _ in self.writes if s == at) for s in self.shards]
        self.things = [part | own & ~sum(bit[d] for d in case.derived) for part, own in zip(self.parts, self.own)]
        self.nothing = tuple(Hold() for _ in self.shards)
        self.derived = sum(bit[name] for name in case.derived)
        # By set of transactions: all their shards.
        self.where = [0] * (1 << len(self.transactions))
        for known in range(len(self.where)):
            self.where[known] = sum({1 << s for _, t, at in self.transactions if known & t for s in at})
        # What readers see that stands for a write's cause: the cause, or what that was computed from.
        self.roots = {}
        for _, w, _, cause in self.writes:
            self.roots[w] = self.roots[cause] if cause & self.derived else cause
        causes = {cause for _, _, _, cause in self.writes}
        self.effects = sum(b for b in bit.values() if b not in causes)
        self.tidied = {}
        self.twins = [] if plain else list(self.symmetries(bit))

    def start(self):
        bit = dict(zip(self.names, (1 << i for i in range(len(self.names)))))
        voted = [sum(bit[t] for t, at in self.case.voted if at == s) for s in self.shards]
        readers = tuple(Reader("open", 0, mine, 0, 0, self.nothing) for mine in self.readers)
        sessions = tuple((0, -1, 0, 0) for _ in self.case.sessions)
        return State(tuple(Shard(0, v, v) for v in voted), 0, 0, 0, readers, sessions)

    # What a shard tells, and what it doesn't.

    def withheld(self, state, s, sees, but=None):
        """Whether an answer that shows this must wait."""
        for i, r in enumerate(state.readers):
            hold = r.holds[s]
            if hold.mode in WITHHOLDS and sees & ~hold.sees and i != but:
                return True
        return False

    def vote(self, state, t, s):
        """The readers after the vote was let through; nothing if it's withheld."""
        if self.mutation == "votes-told":
            return state.readers
        readers = state.readers
        for i, r in enumerate(state.readers):
            hold = r.holds[s]
            if hold.mode not in WITHHOLDS or hold.early & t:
                continue
            if hold.mode != SETTLING or not t & hold.permits:
                return None
            if self.mutation != "let-through-forgotten":
                readers = replaced(readers, i, put(r, s, hold._replace(passed=hold.passed | t)))
        return readers

    # What can happen.

    def open_votes(self, state, s):
        """The transactions that the shard may yet vote for."""
        return self.parts[s] & ~(state.committed | state.aborted | state.shards[s].voted)

    def successors(self, state):
        """All steps, as (name, state after it); or just one, or a few, if the others can wait for it."""
        # Whether some reader may yet open a shard, or open it again, and whether a session may yet look at it.
        opening = again = asking = 0
        for mine, r in zip(self.readers, state.readers):
            opening |= r.todo if r.phase == "open" else 0
            again |= mine if r.phase in ("open", "settle", "close") else 0
        for shards, session in zip(self.case.sessions, state.sessions):
            asking |= sum({1 << s for s in shards[session[0] :]})
        steps = []

        def step(name, after, free=False):
            """`free` if it commutes with whatever else may happen before it, and if nothing else is kept from happening."""
            steps.append((name, after))
            if free and not self.plain:
                raise Free

        def at(s, **changes):
            return state._replace(shards=replaced(state.shards, s, state.shards[s]._replace(**changes)))

        try:
            self.decide(state, step)
            for i in range(len(state.readers)):
                self.read(state, i, step)
            self.work(state, step, at, opening | asking, again | opening | asking)
            for i in range(len(state.sessions)):
                self.look(state, i, step)
        except Free:
            return steps[-1:]
        except Decided:
            return steps
        return steps

    def decide(self, state, step):
        """What is decided once all shards have voted, and what clients hear of."""
        decided = state.committed | state.aborted
        for name, t, participants in self.transactions:
            if not t & decided:
                voted = all(state.shards[s].voted & t for s in participants)
                if voted:
                    step(f"{name} is committed", state._replace(committed=state.committed | t), not self.case.aborts)
                if self.case.aborts:
                    step(f"{name} is aborted", state._replace(aborted=state.aborted | t))
                if voted and not self.plain:
                    # Nothing but the verdict concerns it, and the verdict concerns nothing else.
                    raise Decided
            if t & ~state.heard and all(state.shards[s].sees & t for s in participants):
                step(f"{name} is acknowledged", state._replace(heard=state.heard | t), True)
        for name, w, s, _ in self.writes:
            if w & state.shards[s].sees & ~state.heard:
                # Readers that open later have seen it. The more is heard, the more may happen.
                told = not self.withheld(state, s, w)
                if told or self.mutation == "acknowledgements-told":
                    step(f"{name} is acknowledged", state._replace(heard=state.heard | w), True)
                elif self.mutation == "reads-told" or self.mutation == "tables-apart" and w & self.derived:
                    step(f"somebody reads {name}", state._replace(heard=state.heard | w), True)

    def work(self, state, step, at, opening, seeing):
        """What shards do by themselves."""
        decided = state.committed | state.aborted
        for name, t, participants in self.transactions:
            for s in participants:
                shard = state.shards[s]
                # Whoever opens finds it pending or not; else only its vote matters.
                hidden = not opening >> s & 1
                if not t & decided:
                    if not t & shard.pending:
                        step(f"{s} prepares {name}", at(s, pending=shard.pending | t), hidden)
                    elif not t & shard.voted:
                        readers = self.vote(state, t, s)
                        if readers is not None:
                            after = at(s, voted=shard.voted | t)._replace(readers=readers)
                            # If nobody has to settle it: readers that open later let it through.
                            step(f"{s} votes for {name}", after, readers is state.readers)
                elif t & shard.pending:
                    sees = shard.sees | (t & state.committed)
                    hidden = hidden if t & state.aborted else not seeing >> s & 1
                    step(f"{s} finishes {name}", at(s, pending=shard.pending & ~t, sees=sees), hidden)
        for name, w, s, cause in self.writes:
            sees = state.shards[s].sees
            if not w & sees and not cause & ~(sees if w & self.derived else state.heard):
                step(f"{s} writes {name}", at(s, sees=sees | w), not seeing >> s & 1)

    def look(self, state, i, step):
        """What a session does."""
        done, met, owed, lost = state.sessions[i]
        shards = self.case.sessions[i]
        if done == len(shards):
            return

        def put(heard, *session):
            return state._replace(heard=heard, sessions=replaced(state.sessions, i, session))

        s = shards[done]
        shard = state.shards[s]
        if met < 0:
            met = 0 if self.mutation == "session-rushes" else shard.pending
            step(f"session {i} asks {s}", put(state.heard, done, met, state.heard, lost))
        elif not met & shard.pending and not self.withheld(state, s, shard.sees):
            lost |= owed & self.things[s] & ~shard.sees
            step(f"session {i} reads {s}", put(state.heard | shard.sees, done + 1, -1, 0, lost))

    def read(self, state, i, step):
        """What a reader does, and its shards for it."""
        reader = state.readers[i]
        mine = self.readers[i]
        alone = len(state.readers) == 1

        def become(reader):
            return state._replace(readers=replaced(state.readers, i, reader))

        def settle(reader, known):
            unheard = mine if self.mutation == "not-passed-on" else mine | self.where[known]
            return reader._replace(phase="settle", known=known, todo=mine, unheard=unheard)

        def scan(reader):
            return reader._replace(phase="scan", known=0, todo=mine, unheard=0)

        def votes_are_over(s, hold):
            """Whether nothing can be let through here that the reader has to settle, nor by others for its sake."""
            left = self.open_votes(state, s)
            return not (left & ~hold.early if alone else left)

        if reader.phase == "open":
            for s in bits(reader.todo):
                shard = state.shards[s]
                hold = Hold(OPEN, shard.sees, shard.pending & ~shard.voted, shard.pending)
                if self.mutation == "pending-ignored":
                    hold = hold._replace(pending=0)
                if self.mutation == "released-early":
                    hold = hold._replace(mode=RELEASED, pending=0)
                opened = put(reader, s, hold)._replace(todo=reader.todo & ~(1 << s))
                if reader.todo == mine:
                    opened = opened._replace(owed=state.heard)
                if not opened.todo:
                    known = 0
                    for o in bits(mine):
                        known |= opened.holds[o].pending
                    opened = settle(opened, known) if known else scan(opened)
                step(f"reader {i} opens {s}", become(opened))
        elif reader.phase == "settle":
            for s in bits(reader.unheard):
                # Who comes later with more, or went before, changes nothing of what it lets through here.
                free = alone or not self.open_votes(state, s) & ~reader.known
                step(f"{s} hears what reader {i} settles", self.hear(state, s, i), free)
            for s in bits(reader.todo & ~reader.unheard):
                hold = reader.holds[s]
                shard = state.shards[s]
                must = hold.pending | hold.passed
                if must & ~reader.known:
                    step(f"reader {i} learns from {s}", become(settle(reader, reader.known | must)))
                elif not must & shard.pending:
                    # A snapshot that is opened again must not be able to see more if it's opened later.
                    last = reader.todo == 1 << s
                    free = votes_are_over(s, hold) and not (last and reader.unheard)
                    if self.mutation == "older-put" and must and hold.spare < 0:
                        spare = put(reader, s, hold._replace(spare=shard.sees))
                        step(f"{s} opens again for reader {i}, for the first of two requests", become(spare))
                    if must:
                        undone = shard.pending | self.open_votes(state, s) | self.own[s] & ~shard.sees
                        free = free and not undone
                        hold = hold._replace(sees=shard.sees, pending=0, passed=0)
                        if self.mutation == "position-moves":
                            hold = hold._replace(early=shard.pending & ~shard.voted)
                    settled = put(reader, s, hold)._replace(todo=reader.todo & ~(1 << s))
                    if last:
                        # Other participants that haven't heard of it by now needn't any more.
                        settled = settled._replace(phase="close", todo=mine, unheard=0)
                        if self.mutation == "not-closed":
                            settled = scan(settled)
                    step(f"reader {i} has settled {s}", become(settled), free)
        elif reader.phase == "close":
            for s in bits(reader.todo):
                hold = reader.holds[s]
                if hold.spare >= 0 and hold.mode == SETTLING and not hold.passed:
                    put_back = put(reader, s, hold._replace(sees=hold.spare, spare=-1))
                    step(f"{s} puts reader {i}'s older snapshot in the place of the newer", become(put_back))
                if hold.passed:
                    step(f"reader {i} learns late from {s}", become(settle(reader, reader.known | hold.passed)))
                    continue
                closed = put(reader, s, hold._replace(mode=CLOSED))._replace(todo=reader.todo & ~(1 << s))
                after = become(closed if closed.todo else scan(closed))
                step(f"reader {i} closes {s}", after, votes_are_over(s, hold) and hold.spare < 0)
        elif reader.phase == "scan":
            for s in bits(reader.todo):
                hold = reader.holds[s]
                if hold.mode != RELEASED:
                    shard = state.shards[s]
                    twice = self.mutation == "opened-twice"
                    if twice and hold.sees != shard.sees and not shard.pending:
                        again = put(reader, s, Hold(OPEN, shard.sees))
                        step(f"{s} opens for reader {i}, by a request that comes twice", become(again))
                    # Others find more to tell, and nothing less.
                    released = become(put(reader, s, hold._replace(mode=RELEASED)))
                    step(f"reader {i} releases {s}", released, not twice)
                    continue
                # Whoever opens now has seen it.
                told = not self.withheld(state, s, hold.sees, but=i)
                if not told and self.mutation != "scans-told":
                    continue
                answered = reader._replace(todo=reader.todo & ~(1 << s))
                if answered.todo:
                    step(f"reader {i} has read {s}", become(answered), True)
                else:
                    # What was only said for its sake is forgotten.
                    words = any(hold.mode == WORD for hold in reader.holds)
                    after = become(Reader("done", 0, 0, 0, 0, self.nothing))
                    after = after._replace(heard=state.heard | self.seen(reader, mine))
                    step(f"reader {i} is done with {s}", after, not words)

    def hear(self, state, s, by):
        """A shard is told what a reader settles: whoever settles something here settles it, too."""
        reader = state.readers[by]
        mode = SETTLING if self.readers[by] >> s & 1 else WORD
        hold = reader.holds[s]
        hold = hold._replace(mode=mode, permits=hold.permits | reader.known)
        told = put(reader, s, hold)._replace(unheard=reader.unheard & ~(1 << s))
        readers = replaced(state.readers, by, told)
        if self.mutation != "not-shared":
            union = 0
            for i, r in enumerate(readers):
                # Without the rule, a word reaches those who settle at the moment, and stays with nobody.
                forgets = self.mutation == "word-forgotten" and i != by
                if r.holds[s].mode in ((SETTLING,) if forgets else SETTLES):
                    union |= r.holds[s].permits
            for i, r in enumerate(readers):
                if r.holds[s].mode in SETTLES:
                    readers = replaced(readers, i, put(r, s, r.holds[s]._replace(permits=union)))
        return state._replace(readers=readers)

    def seen(self, reader, mine):
        seen = 0
        for s in bits(mine):
            seen |= reader.holds[s].sees
        return seen

    # What states are the same.

    def tidy(self, state):
        """The same without what nobody will ask for again."""
        shards, committed, aborted, heard, readers, sessions = state
        decided = committed | aborted
        if any(shard.voted & decided for shard in shards):
            shards = tuple(Shard(sees, pending, voted & ~decided) for sees, pending, voted in shards)
        # What each shard may yet vote for.
        left = tuple(part & ~(decided | shard.voted) for part, shard in zip(self.parts, shards))
        readers = tuple([self.tidy_reader(i, r, left) for i, r in enumerate(readers)])
        begins = any(r.phase == "open" and r.todo == mine for r, mine in zip(readers, self.readers))
        if not begins and all(session[0] == len(at) for session, at in zip(sessions, self.case.sessions)):
            # Whether anybody has heard of it matters for what causes something alone.
            heard |= self.effects
        return State(shards, committed, aborted, heard, readers, sessions)

    def tidy_reader(self, i, reader, left):
        found = self.tidied.get((i, reader, left))
        if found is None:
            phase, known, todo, unheard, owed, holds = reader
            if phase != "open":
                # Snapshots are opened again for newer ones alone.
                lacks = [owed & self.things[s] & ~holds[s].sees for s in self.case.readers[i]]
                owed = sum({1 << t for lack in lacks for t in bits(lack)})
            holds = tuple(map(self.tidy_hold, holds, left))
            found = self.tidied[i, reader, left] = Reader(phase, known, todo, unheard, owed, holds)
        return found

    def tidy_hold(self, hold, left):
        mode, sees, early, pending, permits, passed, spare = hold
        if mode == NEW:
            return hold
        if mode == WORD:
            return Hold(WORD, 0, 0, 0, permits & left) if permits & left else Hold()
        if mode == RELEASED:
            return Hold(RELEASED, sees)
        return Hold(mode, sees, early & left, pending, permits & left if mode == SETTLING else 0, passed, spare)

    def symmetries(self, bit):
        """The other names that shards, transactions and readers may have: each as a function of states."""
        case = self.case
        fixed = {s for s, _ in case.writes.values()} | {s for shards in case.sessions for s in shards}
        names = list(case.transactions)
        for of in permutations(self.shards):
            for called in permutations(names):
                name = dict(zip(names, called))
                moved = {name[t]: sorted(of[s] for s in at) for t, at in case.transactions.items()}
                if (
                    any(of[s] != s for s in fixed)
                    or any(name.get(cause, cause) != cause for _, cause in case.writes.values())
                    or moved != {t: sorted(at) for t, at in case.transactions.items()}
                    or {(name[t], of[s]) for t, s in case.voted} != set(case.voted)
                ):
                    continue
                moved = [sorted(of[s] for s in r) for r in case.readers]
                for places in permutations(range(len(case.readers))):
                    # The reader at places[i] becomes reader i.
                    if [moved[p] for p in places] != [sorted(r) for r in case.readers]:
                        continue
                    if list(of) == sorted(of) and names == list(called) and list(places) == sorted(places):
                        continue
                    yield self.renaming(of, {bit[t]: bit[name[t]] for t in names}, places)

    def renaming(self, of, called, places):
        sets = range(1 << len(self.names))
        new = [sum(called.get(1 << i, 1 << i) for i in bits(known)) for known in sets]
        at = [sum(1 << of[s] for s in bits(known)) for known in range(1 << len(self.shards))]
        back = [of.index(s) for s in self.shards]
        memory = {}

        def hold(h):
            spare = h.spare if h.spare < 0 else new[h.spare]
            return Hold(h.mode, new[h.sees], new[h.early], new[h.pending], new[h.permits], new[h.passed], spare)

        def reader(r):
            found = memory.get(r)
            if found is None:
                holds = tuple(hold(r.holds[s]) for s in back)
                found = memory[r] = Reader(r.phase, new[r.known], at[r.todo], at[r.unheard], new[r.owed], holds)
            return found

        def shard(s):
            return Shard(new[s.sees], new[s.pending], new[s.voted])

        def rename(state):
            shards, committed, aborted, heard, readers, sessions = state
            return State(
                tuple([shard(shards[s]) for s in back]), new[committed], new[aborted], new[heard],
                tuple([reader(readers[p]) for p in places]),
                tuple([(done, new[met] if met > 0 else met, new[owed], new[lost]) for done, met, owed, lost in sessions]),
            )  # fmt: skip

        return rename

    def alike(self, state):
        """The one of the states that differ in names alone that stands for all of them."""
        least = state
        for twin in self.twins:
            other = twin(state)
            if other < least:
                least = other
        return least

    # What may never be.

    def violation(self, state):
        for i, (reader, mine) in enumerate(zip(state.readers, self.case.readers)):
            # What it shows is fixed.
            if reader.phase != "scan" or any(reader.holds[s].mode != RELEASED for s in mine):
                continue
            sees = {s: reader.holds[s].sees for s in mine}
            everything = self.seen(reader, self.readers[i])
            for name, t, participants in self.transactions:
                if len({sees[s] & t for s in participants if s in mine}) > 1:
                    return f"FRACTURE: reader {i} sees half of {name}"
            for name, w, _, _ in self.writes:
                root = self.roots[w]
                if w & everything & ~self.derived and root & ~everything and any(root & self.things[s] for s in mine):
                    return f"CAUSALITY: reader {i} sees {name} and not {self.name(root)}"
            for s in mine:
                lost = reader.owed & self.things[s] & ~sees[s]
                if lost:
                    return f"STALE: reader {i} doesn't see {self.name(lost)} on {s}"
        for i, (_, _, _, lost) in enumerate(state.sessions):
            if lost:
                return f"BACKWARDS: session {i} doesn't see {self.name(lost)}"
        return None

    def name(self, thing):
        return self.names[thing.bit_length() - 1]

    def is_over(self, state):
        """Whether everyone has read what they wanted to."""
        sessions = zip(state.sessions, self.case.sessions)
        return all(r.phase == "done" for r in state.readers) and all(s[0] == len(shards) for s, shards in sessions)

    def further(self, state):
        """The states that come next, as (the steps' names, state, what's wrong)."""
        for name, new in self.successors(state):
            # A step that nothing else has to be tried beside is taken together with the one before it.
            while True:
                wrong = self.violation(new)
                if self.ends is not None:
                    self.note(new)
                new = self.tidy(new)
                if wrong or self.plain or self.is_over(new):
                    break
                more = self.successors(new)
                if len(more) != 1:
                    break
                name, new = f"{name}; {more[0][0]}", more[0][1]
            yield name, new, wrong

    def run(self):
        """How many states there are, and what's wrong, if something is."""
        start = self.start()
        came_from, queue = {start: None}, deque([start])
        while queue:
            state = queue.popleft()
            if self.is_over(state):
                continue
            stuck = True
            for _, new, wrong in self.further(state):
                stuck = False
                if wrong:
                    return len(came_from), self.path(came_from, state)
                new = self.alike(new)
                if new not in came_from:
                    came_from[new] = state
                    queue.append(new)
            if stuck:
                return len(came_from), self.path(came_from, state)
        return len(came_from), None

    def path(self, came_from, state):
        """What is wrong after a state, and how it comes about, in the names that things have at the start."""
        states = []
        while came_from[state]:
            states.append(state)
            state = came_from[state]
        steps = []
        for wanted in reversed(states):
            name, state = next((name, new) for name, new, _ in self.further(state) if self.alike(new) == wanted)
            steps.append(name)
        name, wrong = next(((name, wrong) for name, _, wrong in self.further(state) if wrong), ("", "DEADLOCK"))
        return f"{wrong} by: {'; '.join([*steps, name])}"

    def note(self, state):
        """Notes what readers see, under each of the names that all may have."""
        for twin in [tuple, *self.twins]:
            for i, reader in enumerate(twin(state)[4]):
                mine = self.case.readers[i]
                if reader.phase == "scan" and all(reader.holds[s].mode == RELEASED for s in mine):
                    self.ends.add((i, *(reader.holds[s].sees for s in mine)))


class Free(Exception):
    """A step that nothing has to be tried beside."""


class Decided(Exception):
    """Verdicts that nothing has to be tried beside."""


def bits(known):
    """The numbers of the bits that are set."""
    return [i for i in range(known.bit_length()) if known >> i & 1]


def replaced(whole, i, one):
    return whole[:i] + (one,) + whole[i + 1 :]


def put(reader, shard, hold):
    return reader._replace(holds=replaced(reader.holds, shard, hold))


def tell(columns, begun, states, result):
    print(" | ".join([*columns, f"{states:7}", f"{time.monotonic() - begun:5.1f} s", result]), flush=True)


def every_case():
    """Whether each case is clean."""
    right = True
    for name, case in CASES.items():
        begun = time.monotonic()
        states, wrong = Model(case).run()
        right &= wrong is None
        tell([f"{name:8}"], begun, states, wrong or "clean")
    return right


def every_mutation():
    """Whether each is caught."""
    right = True
    for mutation, (name, _) in MUTATIONS.items():
        begun = time.monotonic()
        states, wrong = Model(CASES[name], mutation).run()
        right &= wrong is not None
        tell([f"{mutation:21}", f"{name:8}"], begun, states, wrong.split(" by:")[0] if wrong else "NOT CAUGHT")
    return right


def check():
    """Whether readers may see the same things where every order is really tried."""
    right = True
    for name in SMALL:
        begun = time.monotonic()
        few, all_ = Model(CASES[name]), Model(CASES[name], plain=True)
        few.ends, all_.ends = set(), set()
        results = few.run(), all_.run()
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
        print("", *(f"{name:21} leaves out: {rule}" for name, (_, rule) in MUTATIONS.items()), sep="\n")
        return 2
    begun = time.monotonic()
    states, wrong = Model(CASES[names[0]], "".join(names[1:2]), plain).run()
    tell(names, begun, states, wrong or "clean")
    return wrong is not None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
