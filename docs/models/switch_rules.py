"""The rules of the switch: what a state is, what can happen in it, and what may never be.

`switch.py` has the cases, and tries them.
"""
from functools import lru_cache
from typing import NamedTuple

# Without these rules it matters how soon entries are taken over.
HASTY = ("early", "reads-go-on", "give-up-unwritten", "older-adoption", "replica-unaware")

# Entries of a group's log: (kind, ..).
WRITE, PREPARE, COMMIT, ABORT, RENOUNCE, FORGET = "W", "P", "C", "A", "R", "F"
SEAL, VOID, COPY, ADOPT = "S", "V", "copy", "adopt"


class View(NamedTuple):
    """What a group's log comes to."""

    shown: frozenset  # (what, key): what readers see
    asked: frozenset  # writes whose outcome is known here
    prepared: frozenset  # (transaction, keys, the shards whose votes this is)
    ended: frozenset  # transactions that were committed here
    renounced: frozenset
    sealed: int  # the attempt that has sealed it; 0 for none
    void: int  # attempts up to this one can't
    office: int  # the epoch from which on it serves; -1 for none
    adopted: int  # the attempt in which it came to that
    taken: tuple  # (source, how many of its entries were taken over)
    twice: bool


# A transaction's stages, as its router has them.
RUN, PREPARING, COMMITTED, ABORTING, ABORTED, GONE = range(6)


class Client(NamedTuple):
    """A write."""

    to: tuple = ()  # (group, epoch): whom it is sent to
    told: str = ""  # what its client was told: "done", "not done"


class Transaction(NamedTuple):
    stage: int
    parts: tuple  # (group, epoch, keys)
    asked: bool  # whether it was sent to its parts that they prepare
    votes: int  # bits of the parts that have voted, as the router heard
    told: str  # what its client was told
    record: str  # the coordinator's verdict: "commit", "abort"


class Reader(NamedTuple):
    stage: str  # new, begun, done
    epoch: int  # the topology that it is routed by
    owed: frozenset
    seen: tuple  # (group, keys, what was seen)


class Cut(NamedTuple):
    stage: str
    epoch: int
    seen: tuple  # (group, what it has seen): its snapshots


class State(NamedTuple):
    logs: tuple
    epoch: int  # how many switches were decided
    phase: str  # ready, switching, undoing
    fates: tuple  # for each attempt: (the epoch in which it began, whether it was given up)
    starts: tuple  # for each group that takes over: from which entry of each source
    known: tuple  # by router: its topology
    sent: frozenset  # (write, group, epoch): requests that may come yet
    open: frozenset  # (transaction, group): branches in leaders' memory
    clients: tuple
    transactions: tuple
    readers: tuple
    tokens: tuple
    cuts: tuple


class Free(Exception):
    """A step that nothing has to be tried beside."""


class Model:
    def __init__(self, case, mutation="", plain=False):
        self.case, self.mutation, self.plain = case, mutation, plain
        self.ends = set()
        self.groups = [*case.sides[0], *case.sides[1], *case.others]
        self.at = {g: i for i, g in enumerate(self.groups)}
        self.range = {**case.sides[0], **case.sides[1], **case.others}
        self.writes = list(case.writes)
        self.names = list(case.transactions)
        self.keys = {name: keys for name, (keys, _, _) in case.writes.items()}
        self.keys |= {name: keys for name, (keys, _) in case.transactions.items()}
        routers = [r for _, r, _ in case.writes.values()] + [r for _, r in case.transactions.values()]
        routers += [r for _, r in (*case.readers, *case.tokens, *case.cuts)]
        self.routers = max(routers) + 1
        self.fold = lru_cache(maxsize=None)(self.fold)

    def start(self):
        none = frozenset()
        return State(
            logs=tuple(() for _ in self.groups), epoch=0, phase="ready", fates=(), starts=(), known=(0,) * self.routers,
            sent=none, open=none, clients=tuple(Client() for _ in self.writes),
            transactions=tuple(Transaction(RUN, (), False, 0, "", "") for _ in self.names),
            readers=tuple(Reader("new", 0, none, ()) for _ in self.case.readers),
            tokens=tuple("" for _ in self.case.tokens), cuts=tuple(Cut("new", 0, ()) for _ in self.case.cuts),
        )  # fmt: skip

    # Who has what.

    def side(self, epoch):
        """The groups that serve in an epoch, of those that are switched."""
        return list(self.case.sides[epoch % 2])

    def shard(self, g, epoch):
        """What a group serves as in an epoch."""
        return (g, 0 if g in self.case.others else epoch)

    def owner(self, key, epoch):
        for g in (*self.side(epoch), *self.case.others):
            if key in self.range[g]:
                return g
        raise KeyError(key)

    def sources(self, g, epoch):
        """Whom a group of the next epoch takes over from."""
        return [s for s in self.side(epoch) if set(self.range[s]) & set(self.range[g])]

    def heirs(self, g, epoch, now):
        """The groups that have taken over what a shard was in an epoch, by now."""
        if g in self.case.others:
            return [g]
        found = [g]
        for e in range(epoch, now):
            found = [h for h in self.side(e + 1) if any(set(self.range[h]) & set(self.range[f]) for f in found)]
        return found

    def view(self, state, g):
        return self.fold(g, state.logs[self.at[g]])

    def fold(self, g, log):
        """What a log comes to."""
        if not log:
            serves = g in self.case.sides[0] or g in self.case.others
            none = frozenset()
            return View(none, none, none, none, none, 0, 0, 0 if serves else -1, 0, (), False)
        view, entry = self.fold(g, log[:-1]), log[-1]
        mine = set(self.range[g])

        def show(view, what):
            keys = frozenset((what, key) for key in self.keys[what] if key in mine)
            return view._replace(shown=view.shown | keys, twice=view.twice or bool(view.shown & keys))

        kind = entry[0]
        if kind == COPY:
            _, source, n, copied = entry
            taken = dict(view.taken) | {source: n + 1}
            view = view._replace(taken=tuple(sorted(taken.items())))
            if copied[0] == WRITE:
                view = show(view, copied[1])
                if self.mutation != "requests-dropped":
                    view = view._replace(asked=view.asked | {copied[1]})
            elif copied[0] == COMMIT:
                # What the source has of it; the rest comes from elsewhere.
                _, what, part = copied
                keys = frozenset((what, key) for key in part if key in mine)
                view = view._replace(shown=view.shown | keys, twice=view.twice or bool(view.shown & keys))
            elif copied[0] == VOID and view.office >= 0 and not view.sealed and g not in self.case.others:
                # What was adopted is forgotten: the source goes on.
                none = frozenset()
                view = view._replace(office=-1, prepared=none, ended=none, renounced=none)
            return view
        if kind == WRITE:
            return show(view, entry[1])._replace(asked=view.asked | {entry[1]})
        if kind == PREPARE:
            keys = "".join(key for key in self.keys[entry[1]] if key in mine)
            return view._replace(prepared=view.prepared | {(entry[1], keys, frozenset({(g, view.office)}))})
        if kind in (COMMIT, ABORT):
            _, what, part = entry
            left = frozenset(p for p in view.prepared if p[0] != what)
            if kind == ABORT:
                return view._replace(prepared=left)
            keys = frozenset((what, key) for key in part)
            twice = view.twice or bool(view.shown & keys)
            return view._replace(prepared=left, shown=view.shown | keys, ended=view.ended | {what}, twice=twice)
        if kind == RENOUNCE:
            return view._replace(renounced=view.renounced | {entry[1]})
        if kind == FORGET:
            return view._replace(ended=view.ended - {entry[1]})
        if kind == SEAL:
            return view._replace(sealed=entry[1])
        if kind == VOID:
            sealed = 0 if view.sealed == entry[1] else view.sealed
            return view._replace(sealed=sealed, void=max(view.void, entry[1]))
        _, epoch, attempt, prepared, ended = entry
        view = view._replace(prepared=prepared, ended=ended, renounced=frozenset(), sealed=0)
        return view._replace(office=epoch, adopted=attempt)

    def is_open(self, state, g, epoch, reads=False):
        """Whether a group serves who was routed by this epoch."""
        view = self.view(state, g)
        if g in self.case.others:
            return True
        if view.sealed and not (
            self.mutation == "stale-write" and not reads or self.mutation == "reads-go-on" and reads
        ):
            return False
        return view.office == epoch

    def told(self, state):
        """What clients were told is done, as (what, key)."""
        writes = {name for name, client in zip(self.writes, state.clients) if client.told == "done"}
        writes |= {name for name, t in zip(self.names, state.transactions) if t.told == "done"}
        return frozenset((name, key) for name in writes for key in self.keys[name])

    # What can happen.

    def successors(self, state):
        steps = []

        def step(name, after, free=False):
            steps.append((name, after))
            if free and not self.plain:
                raise Free

        def append(g, *entry, **changes):
            i = self.at[g]
            return state._replace(logs=replaced(state.logs, i, state.logs[i] + (entry,)), **changes)

        try:
            self.take_over(state, step, append)
            self.switch(state, step, append)
            for i in range(len(self.writes)):
                self.write(state, i, step, append)
            for i in range(len(self.names)):
                self.transact(state, i, step, append)
            for i in range(len(state.readers)):
                self.read(state, i, step)
            for i in range(len(state.tokens)):
                self.read_near(state, i, step)
            for i in range(len(state.cuts)):
                self.cut(state, i, step)
            for r, known in enumerate(state.known):
                if known < state.epoch:
                    step(f"router {r} hears of epoch {known + 1}", state._replace(known=replaced(state.known, r, known + 1)))
        except Free:
            return steps[-1:]
        return steps

    def take_over(self, state, step, append):
        """Groups of the next epoch take over entries of those that serve. Nobody sees it before they adopt."""
        for g in self.side(state.epoch + 1):
            taken = dict(self.view(state, g).taken)
            for source in self.sources(g, state.epoch):
                if state.epoch and (g, source) not in dict(state.starts):
                    # Without the rule: it begins where its source is by then.
                    starts = dict(state.starts) | {(g, source): len(state.logs[self.at[source]])}
                    step(f"{g} begins to take {source} over", state._replace(starts=tuple(sorted(starts.items()))))
                    continue
                log = state.logs[self.at[source]]
                n = max(taken.get(source, 0), self.begin(state, g, source))
                if n < len(log):
                    after = append(g, COPY, source, n, self.carried(log[n]))
                    # Whether it comes earlier matters only to who doesn't wait for it, or sees what is closed.
                    step(f"{g} takes entry {n} of {source} over", after, self.mutation not in HASTY)

    def carried(self, entry):
        """What others take over of an entry: nothing of what it had taken over itself."""
        return entry if entry[0] in (WRITE, COMMIT, SEAL, VOID) else (entry[0],)

    def begin(self, state, g, source):
        """From which entry of its source on a group takes over."""
        return dict(state.starts).get((g, source), 0)

    def switch(self, state, step, append):
        """The coordinator, and what the groups do by its word."""
        attempt = len(state.fates)
        now = state.epoch
        if state.phase == "ready" and now < self.case.switches and attempt < self.case.attempts:
            step(f"attempt {attempt + 1} begins", state._replace(phase="switching", fates=state.fates + ((now, False),)))
        # Whatever was asked for may come at any time.
        for a, (epoch, given_up) in enumerate(state.fates, 1):
            for g in self.side(epoch):
                view = self.view(state, g)
                may = a > view.void or self.mutation == "late-seal"
                if may and not view.sealed and view.office == epoch:
                    # What its leader has in memory ends.
                    left = frozenset(o for o in state.open if o[1] != g)
                    cuts = state.cuts if self.mutation == "cut-kept" else tuple(self.lose(c, g) for c in state.cuts)
                    step(f"{g} is sealed by attempt {a}", append(g, SEAL, a, open=left, cuts=cuts))
                undoes = given_up or self.mutation == "give-up-unwritten" and state.phase == "switching" and a == attempt
                if undoes and a > view.void and view.office == epoch:
                    step(f"{g} is unsealed after attempt {a}", append(g, VOID, a))
        if state.phase == "switching":
            if attempt < self.case.attempts:
                fates = replaced(state.fates, attempt - 1, (now, True))
                step(f"attempt {attempt} is given up", state._replace(phase="undoing", fates=fates))
            for g in self.side(now + 1):
                self.adopt(state, g, attempt, step, append)
            sealed = all(self.view(state, g).sealed == attempt for g in self.side(now))
            views = [self.view(state, g) for g in self.side(now + 1)]
            ready = all(view.office == now + 1 for view in views)
            ready = ready and (all(view.adopted == attempt for view in views) or self.mutation == "older-adoption")
            if self.mutation == "early":
                if sealed:
                    # They open though they lack something.
                    after = state
                    for g in self.side(now + 1):
                        entry = (ADOPT, now + 1, attempt, *self.estate(state, g))
                        after = after._replace(logs=replaced(after.logs, self.at[g], after.logs[self.at[g]] + (entry,)))
                    step(f"epoch {now + 1} is decided", self.decided(after))
            elif ready and (sealed or self.mutation == "give-up-unwritten"):
                step(f"epoch {now + 1} is decided", self.decided(state))
        if state.phase == "undoing" and all(self.view(state, g).void >= attempt for g in self.side(now)):
            step(f"attempt {attempt} is undone", state._replace(phase="ready"), True)

    def decided(self, state):
        """The next epoch has come. From here on those that were left take over from those that serve."""
        epoch = state.epoch + 1
        starts = {}
        for g in self.side(epoch + 1):
            for source in self.sources(g, epoch):
                if self.mutation != "reverse-late":
                    starts[g, source] = len(state.logs[self.at[source]])
        return state._replace(epoch=epoch, phase="ready", starts=tuple(sorted(starts.items())))

    def estate(self, state, g):
        """What a group has to take over that isn't rows: of each source, as of its seal."""
        prepared, ended = {}, set()
        sources = self.sources(g, state.epoch)
        for source in sources:
            view = self.view(state, source)
            ended |= view.ended if self.mutation != "ended-dropped" else set()
            for what, keys, votes in view.prepared:
                part = "".join(key for key in keys if key in self.range[g])
                if self.mutation == "one-heir" and not part:
                    continue
                before = ("", frozenset()) if self.mutation == "estates-apart" else prepared.get(what, ("", frozenset()))
                prepared[what] = (before[0] + part, before[1] | votes)
        if self.mutation == "prepared-dropped":
            prepared = {}
        rows = frozenset((what, keys, votes) for what, (keys, votes) in prepared.items())
        # What a source has promised not to vote for needn't be known: nobody votes in its name any more.
        return rows, frozenset(ended)

    def adopt(self, state, g, attempt, step, append):
        view = self.view(state, g)
        if view.office == state.epoch + 1 and view.adopted == attempt:
            return
        for source in self.sources(g, state.epoch):
            log = state.logs[self.at[source]]
            has_all = max(dict(view.taken).get(source, 0), self.begin(state, g, source)) == len(log)
            begun = not state.epoch or (g, source) in dict(state.starts)
            if self.view(state, source).sealed != attempt or not has_all or not begun:
                return
        step(f"{g} adopts what it has taken over", append(g, ADOPT, state.epoch + 1, attempt, *self.estate(state, g)))

    def lose(self, cut, g):
        """A group has forgotten a cut: all of it begins anew."""
        return Cut("new", 0, ()) if cut.stage == "open" and any(g == h for h, _ in cut.seen) else cut

    def write(self, state, i, step, append):
        name, client = self.writes[i], state.clients[i]
        keys, router, cause = self.case.writes[name]
        known = state.known[router]

        def become(client, of=state, **changes):
            return of._replace(clients=replaced(state.clients, i, client), **changes)

        # What was sent may come, and come late.
        for what, g, epoch in sorted(state.sent):
            if what == name and name not in self.view(state, g).asked and self.is_open(state, g, epoch):
                step(f"{g} writes {name}", append(g, WRITE, name))
        if client.told:
            return
        groups = {self.owner(key, known) for key in keys}
        if not client.to:
            if cause and not any(what == cause for what, _ in self.told(state)):
                return
            if len(groups) > 1:
                # It would be another transaction, and isn't this one.
                return step(f"{name} is a transaction by now", become(client._replace(told="not done")))
            to = (groups.pop(), known)
            sent = state.sent | {(name, *to)}
            return step(f"{name} is sent to {to[0]}", become(client._replace(to=to), sent=sent))
        g, epoch = client.to
        if (WRITE, name) in state.logs[self.at[g]] and not self.withheld(state, g, name):
            step(f"{name} is acknowledged", become(client._replace(told="done")))
        if known > epoch and not self.is_open(state, g, epoch):
            # Refused, and perhaps it had been done before. The successors know.
            heirs = self.heirs(g, epoch, known)
            if len(groups) == 1:
                to = (groups.pop(), known)
                sent = frozenset(s for s in state.sent if s[0] != name or self.case.late) | {(name, *to)}
                if name in self.view(state, to[0]).asked:
                    step(f"{name} is found at {to[0]}", become(client._replace(told="done")))
                else:
                    step(f"{name} is sent to {to[0]} again", become(client._replace(to=to), sent=sent))
            elif self.mutation == "batch-again" or not any(name in self.view(state, h).asked for h in heirs):
                step(f"{name} is said not to be done", become(client._replace(told="not done")))
            else:
                step(f"{name} is found", become(client._replace(told="done")))

    def withheld(self, state, g, name):
        """Whether a cut keeps its acknowledgement back."""
        for cut in state.cuts:
            if cut.stage == "open":
                for h, sees in cut.seen:
                    if h == g and not any(what == name for what, _ in sees):
                        return True
        return False

    def transact(self, state, i, step, append):
        name, t = self.names[i], state.transactions[i]
        keys, router = self.case.transactions[name]
        known = state.known[router]

        def become(new, of=state, **changes):
            return of._replace(transactions=replaced(state.transactions, i, new), **changes)

        def row(g):
            """What it has of the transaction, if that is prepared."""
            return next((row for row in self.view(state, g).prepared if row[0] == name), None)

        def voted(h, shard):
            """Whether a group has the vote of a shard, its own or one that it has taken over."""
            found = row(h)
            borrowed = self.mutation == "votes-borrowed" and found
            return name in self.view(state, h).ended or borrowed or found and shard in found[2]

        if t.stage == RUN:
            done = "".join(part for _, _, part in t.parts)
            left = [key for key in keys if key not in done]
            if left:
                g = self.owner(left[0], known)
                part = "".join(key for key in left if key in self.range[g])
                if self.is_open(state, g, known):
                    parts = t.parts + ((g, known, part),)
                    step(f"{name} runs on {g}", become(t._replace(parts=parts), open=state.open | {(name, g)}))
            else:
                step(f"{name} is to be committed", become(t._replace(stage=PREPARING, asked=True)))
        # Requests to prepare may come late, too.
        for g, epoch, _ in t.parts:
            if t.asked and (name, g) in state.open and self.is_open(state, g, epoch) and not row(g):
                left = state.open - {(name, g)}
                if name in self.view(state, g).renounced:
                    step(f"{g} has promised not to vote for {name}", state._replace(open=left), True)
                else:
                    step(f"{g} prepares {name}", append(g, PREPARE, name, open=left))
        if t.stage == PREPARING:
            for n, (g, epoch, _) in enumerate(t.parts):
                if t.votes >> n & 1:
                    continue
                own = any(entry[:2] == (PREPARE, name) for entry in state.logs[self.at[g]])
                heirs = self.heirs(g, epoch, known) if known > epoch else []
                # Of a shard that has gone on in others, these know whether it had voted.
                if own or heirs and all(voted(h, self.shard(g, epoch)) for h in heirs):
                    step(f"{name} has the vote of {g}", become(t._replace(votes=t.votes | 1 << n)))
                if self.mutation == "branch-forgotten" and heirs and not own:
                    step(f"{name} forgets {g}", become(t._replace(votes=t.votes | 1 << n)))
            if t.votes == (1 << len(t.parts)) - 1:
                step(f"{name} is acknowledged", become(t._replace(stage=COMMITTED, told="done")))
            else:
                step(f"{name} is to be aborted", become(t._replace(stage=ABORTING)))
        if t.stage == ABORTING:
            verdict = t.record or "abort"
            stage, told = (COMMITTED, "done") if verdict == "commit" else (ABORTED, "not done")
            step(f"{name} is {told}", become(t._replace(stage=stage, told=told, record=verdict)))
        if self.case.crashes:
            if t.stage != GONE:
                step(f"the router of {name} dies", become(t._replace(stage=GONE)))
            for g in {g for what, g in state.open if what == name}:
                left = frozenset(o for o in state.open if o[1] != g)
                step(f"the leader of {g} dies", state._replace(open=left))
        self.end(state, name, t, step, append, become, row, voted)

    def end(self, state, name, t, step, append, become, row, voted):
        """How what is prepared ends: by whoever knows its outcome, or by the coordinator, which finds it out."""
        now = state.epoch

        def can_be_asked(g):
            return g in self.case.others or not self.view(state, g).sealed and self.view(state, g).office == now

        def where(g, epoch):
            """Who is asked for a participant."""
            if self.mutation == "heirs-unknown" and epoch < now and g not in self.case.others:
                # What isn't there any more has taken its branch with it.
                return []
            return self.heirs(g, epoch, now)

        places = [(self.shard(g, epoch), where(g, epoch)) for g, epoch, _ in t.parts]
        everywhere = {h for _, place in places for h in place}
        waiting = sorted(h for h in everywhere if row(h) and can_be_asked(h))
        if not t.record and waiting:
            # It asks when it takes the router to be gone, which it may at any time.
            committed = any(name in self.view(state, h).ended for h in everywhere if can_be_asked(h))
            all_voted = all(all(can_be_asked(h) and voted(h, shard) for h in place) for shard, place in places)
            never = [
                h
                for shard, place in places
                for h in place
                # Who has taken over from a shard that hadn't voted needn't promise: that can't vote any more.
                if can_be_asked(h) and not voted(h, shard)
                and (shard != self.shard(h, now) or name in self.view(state, h).renounced)
            ]
            if committed or all_voted:
                step(f"the coordinator finds that {name} is committed", become(t._replace(record="commit")))
            elif never:
                step(f"the coordinator aborts {name}", become(t._replace(record="abort")))
            for shard, place in places:
                for h in place:
                    promises = can_be_asked(h) and shard == self.shard(h, now) and name not in self.view(state, h).renounced
                    if promises and not voted(h, shard) and not committed and not all_voted:
                        step(f"{h} promises not to vote for {name}", append(h, RENOUNCE, name))
        outcome = t.record or ("commit" if t.stage == COMMITTED else "")
        if outcome:
            kind = COMMIT if outcome == "commit" else ABORT
            for h in waiting:
                step(f"{h} finishes {name}", append(h, kind, name, row(h)[1]))
            if t.stage == COMMITTED and not any(row(h) for h in everywhere):
                # All have finished, as the router has heard of each: none need remember it.
                for h in sorted(everywhere):
                    if can_be_asked(h) and name in self.view(state, h).ended:
                        step(f"{h} forgets {name}", append(h, FORGET, name))
            if self.mutation == "finished-behind":
                for g, _, _ in t.parts:
                    if self.view(state, g).sealed and row(g):
                        step(f"{g} finishes {name}, sealed", append(g, kind, name, row(g)[1]))

    def read(self, state, i, step):
        """A read by leaders. It waits for the end of what it must see."""
        reader = state.readers[i]
        keys, router = self.case.readers[i]
        known = state.known[router]

        def become(reader):
            return state._replace(readers=replaced(state.readers, i, reader))

        if reader.stage == "new":
            owed = frozenset(o for o in self.told(state) if o[1] in keys)
            step(f"reader {i} begins", become(Reader("begun", known, owed, ())))
        elif reader.stage == "begun":
            seen = "".join(part for _, part, _ in reader.seen)
            left = [key for key in keys if key not in seen]
            groups = sorted({self.owner(key, reader.epoch) for key in left})
            for g in groups:
                view = self.view(state, g)
                owed = {what for what, _ in reader.owed}
                if self.is_open(state, g, reader.epoch, reads=True):
                    if any(what in owed for what, *_ in view.prepared):
                        continue
                    part = "".join(key for key in keys if key in self.range[g])
                    shown = frozenset(s for s in view.shown if s[1] in keys)
                    after = reader._replace(seen=reader.seen + ((g, part, shown),))
                    if set("".join(p for _, p, _ in after.seen)) >= set(keys):
                        after = after._replace(stage="done")
                    step(f"reader {i} reads {g}", become(after))
                elif known > reader.epoch:
                    kept = reader.seen if self.mutation == "mixture" else ()
                    step(f"reader {i} begins anew", become(reader._replace(epoch=known, seen=kept)))

    def read_near(self, state, i, step):
        """A read of any replica of a group, as of a write's position."""
        if state.tokens[i] == "done":
            return
        name, router = self.case.tokens[i]
        client = state.clients[self.writes.index(name)]
        if client.told != "done":
            return
        known = state.known[router]
        key = self.keys[name][0]
        where = [g for g in self.groups if (WRITE, name) in state.logs[self.at[g]]][0]
        since = next((e for e in range(state.epoch + 1) if where in self.side(e)), 0)
        if known < since:
            # It doesn't know the shard that the token names, and asks.
            after = state._replace(known=replaced(state.known, router, state.epoch))
            return step(f"reader {i} has its router ask for the topology", after)
        g = self.owner(key, known)
        log = state.logs[self.at[g]]
        if g == where:
            floor = log.index((WRITE, name)) + 1
        else:
            # The lineage says from where on the successor has everything.
            floor = next(n for n, entry in enumerate(log, 1) if entry[0] == ADOPT)
            floor = 1 if self.mutation == "replica-unaware" else floor
        for n in range(floor, len(log) + 1):
            view = self.fold(g, log[:n])
            if view.office == known and not view.sealed or self.mutation == "replica-unaware":
                fine = (name, key) in view.shown
                stage = "done" if fine else "PAST"
                step(f"a replica of {g} at {n} answers reader {i}", state._replace(tokens=replaced(state.tokens, i, stage)))

    def cut(self, state, i, step):
        """A read that sees one state of all its groups."""
        cut = state.cuts[i]
        keys, router = self.case.cuts[i]
        known = state.known[router]

        def become(cut):
            return state._replace(cuts=replaced(state.cuts, i, cut))

        if cut.stage == "new":
            cut = Cut("open", known, ())
        if cut.stage == "open":
            groups = sorted({self.owner(key, cut.epoch) for key in keys})
            for g in groups:
                if any(g == h for h, _ in cut.seen):
                    continue
                if self.is_open(state, g, cut.epoch, reads=True):
                    after = cut._replace(seen=cut.seen + ((g, self.view(state, g).shown),))
                    if len(after.seen) == len(groups):
                        after = after._replace(stage="done")
                    step(f"cut {i} is opened on {g}", become(after))
                elif known > cut.epoch:
                    step(f"cut {i} begins anew", become(Cut("new", 0, ())))

    # What may never be.

    def violation(self, state):
        for g in self.groups:
            if self.view(state, g).twice:
                return f"TWICE: on {g}"
        for key in sorted({key for keys in self.range.values() for key in keys}):
            takes = [g for g in self.groups if key in self.range[g] and self.accepts(state, g)]
            if len(takes) > 1:
                return f"BOTH: {' and '.join(takes)} take writes for {key}"
        for i, reader in enumerate(state.readers):
            if reader.stage != "done":
                continue
            if sum(len(part) for _, part, _ in reader.seen) != len(self.case.readers[i][0]):
                return f"MIXTURE: reader {i} sees a key twice"
            shown = frozenset().union(*(shown for _, _, shown in reader.seen))
            if reader.owed - shown:
                return f"PAST: reader {i} doesn't see {sorted(reader.owed - shown)}"
        for i, stage in enumerate(state.tokens):
            if stage == "PAST":
                return f"PAST: reader {i} doesn't see what its token stands for"
        for i, cut in enumerate(state.cuts):
            if cut.stage == "done":
                seen = {what for _, sees in cut.seen for what, _ in sees}
                for name, (_, _, cause) in self.case.writes.items():
                    if cause and name in seen and cause not in seen:
                        return f"CAUSALITY: cut {i} sees {name} and not {cause}"
        return None

    def accepts(self, state, g):
        """Whether a group would take a write that somebody may send."""
        view = self.view(state, g)
        return g in self.case.others or 0 <= view.office <= state.epoch and self.is_open(state, g, view.office)

    def is_over(self, state):
        """Whether everyone has come to an end."""
        tried = state.epoch == self.case.switches or len(state.fates) == self.case.attempts
        serving = [*self.side(state.epoch), *self.case.others]
        return (
            tried
            and state.phase == "ready"
            and not any(self.view(state, g).sealed for g in self.side(state.epoch))
            and all(known == state.epoch for known in state.known)
            and all(client.told for client in state.clients)
            and all(t.stage in (COMMITTED, ABORTED, GONE) for t in state.transactions)
            and not any(self.view(state, g).prepared for g in serving)
            and all(reader.stage == "done" for reader in state.readers)
            and all(stage == "done" for stage in state.tokens)
            and all(cut.stage == "done" for cut in state.cuts)
        )

    def verdict(self, state):
        """What is wrong in the end."""
        shown = frozenset()
        for g in (*self.side(state.epoch), *self.case.others):
            shown |= self.view(state, g).shown
        lost = self.told(state) - shown
        if lost:
            return f"LOST: {sorted(lost)}"
        outcomes = [(name, client.told) for name, client in zip(self.writes, state.clients)]
        outcomes += [(name, t.told) for name, t in zip(self.names, state.transactions)]
        for name, told in outcomes:
            there = [key for key in self.keys[name] if (name, key) in shown]
            if there and (told == "not done" or len(there) < len(self.keys[name])):
                return f"HALF: of {name}, which is {told or 'of unknown outcome'}, {there} is there"
        return None

    def tidy(self, state):
        """The same without what can't matter any more."""
        if not state.sent:
            return state
        live = []
        for name, g, epoch in state.sent:
            view = self.view(state, g)
            # Who serves from a later epoch on never answers for an earlier one.
            over = name in view.asked or g not in self.case.others and view.office > epoch
            if not over:
                live.append((name, g, epoch))
        return state._replace(sent=frozenset(live)) if len(live) < len(state.sent) else state

    def note(self, state):
        """Notes what clients were told, and what is there."""
        shown = frozenset()
        for g in (*self.side(state.epoch), *self.case.others):
            shown |= self.view(state, g).shown
        told = tuple(client.told for client in state.clients) + tuple(t.told for t in state.transactions)
        seen = tuple(frozenset().union(*(s for _, _, s in r.seen)) for r in state.readers)
        self.ends.add((state.epoch, told, shown, seen))

    def further(self, state):
        for name, new in self.successors(state):
            wrong = self.violation(new)
            yield name, self.tidy(new), wrong


def replaced(whole, i, one):
    return whole[:i] + (one,) + whole[i + 1 :]
