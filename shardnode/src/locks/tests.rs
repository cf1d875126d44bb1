//! The lock table: cases that show what it promises, and chance against a naive model.

use super::*;
use RowLock::{KeyShare, NoKeyUpdate, Share, Update};
use proto::RouterIncarnation;

fn id(sequence: u64) -> TransactionId {
    TransactionId { router: RouterIncarnation(1), sequence }
}

/// Transactions are as old as their numbers say: 1 is the oldest.
fn party(sequence: u64, statement: u32) -> Party {
    Party { id: id(sequence), begun: sequence, statement }
}

fn row(key: u8) -> Resource {
    Resource { table: TableId(1), part: Part::Row([key].into()) }
}

impl Locks {
    /// Takes the lock, or waits for it; says which.
    fn ask(&mut self, sequence: u64, statement: u32, key: u8, mode: RowLock) -> bool {
        let taken = self.take(party(sequence, statement), &row(key), Mode::Row(mode));
        if !taken {
            assert_eq!(self.wait(party(sequence, statement), &row(key), Mode::Row(mode)), Settled::default());
        }
        taken
    }
}

#[test]
fn the_four_modes_conflict_as_in_postgresql() {
    let modes = [KeyShare, Share, NoKeyUpdate, Update];
    let conflicts = [
        [false, false, false, true],
        [false, false, true, true],
        [false, true, true, true],
        [true, true, true, true],
    ];
    for (held, line) in modes.iter().zip(conflicts) {
        for (wanted, conflict) in modes.iter().zip(line) {
            let mut locks = Locks::default();
            assert!(locks.take(party(1, 1), &row(1), Mode::Row(*held)));
            assert_eq!(
                locks.take(party(2, 1), &row(1), Mode::Row(*wanted)),
                !conflict,
                "{held:?} {wanted:?}"
            );
        }
    }
}

#[test]
fn waiters_are_served_in_their_order() {
    let mut locks = Locks::default();
    assert!(locks.ask(1, 1, 7, Update));
    assert!(!locks.ask(2, 1, 7, Share));
    assert!(!locks.ask(3, 1, 7, Update));
    assert!(!locks.ask(4, 1, 7, Share));
    assert!(!locks.ask(5, 1, 7, Update));
    assert_eq!(locks.waiting(), 4);
    assert_eq!(locks.waits_for(id(4)), [id(1)], "whoever has it, not those who stand before it");
    assert_eq!(locks.release(id(1)), [id(2), id(4)], "3 doesn't go with 2");
    assert!(locks.take(party(6, 1), &row(7), Mode::Row(Share)), "who meets no holder doesn't queue");
    assert_eq!(locks.release(id(2)), []);
    assert_eq!(locks.release(id(6)), []);
    assert_eq!(locks.release(id(4)), [id(3)]);
    assert_eq!(locks.release(id(3)), [id(5)]);
    assert_eq!(locks.release(id(5)), []);
    assert!(locks.is_empty());
}

#[test]
fn a_transaction_never_waits_for_itself_and_goes_first_when_it_wants_more() {
    let mut locks = Locks::default();
    assert!(locks.ask(1, 1, 7, KeyShare));
    assert!(locks.ask(2, 1, 7, KeyShare));
    assert!(!locks.ask(3, 1, 7, Update));
    assert!(locks.ask(1, 2, 7, NoKeyUpdate));
    assert!(!locks.ask(1, 3, 7, Update));
    assert_eq!(locks.release(id(2)), [id(1)], "before 3, who came earlier");
    assert!(locks.ask(1, 4, 7, Share), "it has more than that");
    assert_eq!(locks.release(id(1)), [id(3)]);
}

#[test]
fn what_later_statements_locked_can_be_taken_back() {
    let mut locks = Locks::default();
    assert!(locks.ask(1, 1, 7, Share));
    assert!(locks.ask(1, 2, 7, Update));
    assert!(locks.ask(1, 3, 8, Update));
    assert!(locks.ask(1, 3, 7, Update), "again, which is nothing new");
    assert!(!locks.ask(2, 1, 8, Update));
    assert!(!locks.ask(3, 1, 7, Share));
    assert_eq!(locks.release_after(id(1), 2), [id(2)]);
    assert_eq!(locks.release_after(id(1), 1), [id(3)]);
    assert!(locks.is_blocked(id(3), &row(7), Mode::Row(Update)), "the first statement's is still there");
    assert_eq!(locks.release_after(id(1), 0), []);
    assert!(!locks.is_blocked(id(3), &row(7), Mode::Row(Update)));
}

#[test]
fn beyond_a_number_locks_are_hashes_until_someone_wants_one() {
    let mut locks = Locks { plain: 1, ..Locks::default() };
    for key in 1..=9 {
        assert!(locks.ask(1, u32::from(key), key, if key % 2 == 0 { Update } else { NoKeyUpdate }));
    }
    assert!(locks.ask(1, 9, 4, NoKeyUpdate), "it has more than that");
    assert_eq!((locks.len(), locks.hashed()), (1, 8));
    assert!(locks.has(id(1), &row(9)) && !locks.has(id(1), &row(10)) && !locks.has(id(2), &row(9)));
    assert!(locks.ask(2, 1, 5, KeyShare));
    assert!(locks.is_blocked(id(2), &row(4), Mode::Row(KeyShare)));
    assert!(!locks.ask(2, 2, 4, KeyShare));
    assert_eq!(locks.waits_for(id(2)), [id(1)]);
    assert!(!locks.ask(3, 1, 8, Share));
    assert_eq!(locks.release_after(id(1), 4), [id(3)], "4 is of the fourth");
    assert_eq!(locks.hashed(), 3);
    assert!(!locks.is_blocked(id(2), &row(6), Mode::Row(Update)));
    let own = locks.hashes(id(1)).map(|(_, mode, hashes)| (mode, hashes.to_vec())).collect::<Vec<_>>();
    let mut other = Locks::default();
    own.iter().for_each(|(mode, hashes)| other.restore(party(1, 1), TableId(1), *mode, hashes));
    assert!(other.is_blocked(id(2), &row(2), Mode::Row(KeyShare)));
    assert!(!other.is_blocked(id(2), &row(3), Mode::Row(KeyShare)));
    assert!(!other.ask(2, 1, 3, Share));
    assert_eq!(other.release(id(1)), [id(2)]);
    assert_eq!(locks.release(id(1)), [id(2)]);
    assert_eq!(locks.hashed(), 0);
}

#[test]
fn of_a_circle_the_youngest_gives_up() {
    for last in 1..=3 {
        let mut locks = Locks::default();
        for sequence in 1..=3 {
            assert!(locks.ask(sequence, 1, sequence as u8, Update));
        }
        // 1 waits for 2 waits for 3 waits for 1: each of them may be the last to begin.
        let next = |sequence: u64| sequence % 3 + 1;
        for sequence in (1..=3).filter(|sequence| *sequence != last) {
            assert!(!locks.ask(sequence, 2, next(sequence) as u8, NoKeyUpdate));
        }
        let settled = locks.wait(party(last, 2), &row(next(last) as u8), Mode::Row(NoKeyUpdate));
        assert_eq!(settled.granted, []);
        let [deadlock] = &settled.victims[..] else { panic!("one victim: {settled:?}") };
        assert_eq!(deadlock.victim, id(3));
        assert!(locks.waits_for(id(3)).is_empty());
        let mut lines: Vec<_> = deadlock.detail.lines().collect();
        lines.sort_unstable();
        assert_eq!(
            lines,
            [
                "Transaction 1-1 waits for NO KEY UPDATE lock on a row; blocked by transaction 1-2.",
                "Transaction 1-2 waits for NO KEY UPDATE lock on a row; blocked by transaction 1-3.",
                "Transaction 1-3 waits for NO KEY UPDATE lock on a row; blocked by transaction 1-1.",
            ]
        );
        assert_eq!(locks.release(id(3)), [id(2)]);
    }
}

#[test]
fn two_who_share_and_both_want_more_are_a_circle() {
    let mut locks = Locks::default();
    assert!(locks.ask(1, 1, 7, Share));
    assert!(locks.ask(2, 1, 7, Share));
    assert!(!locks.ask(2, 2, 7, Update));
    let settled = locks.wait(party(1, 2), &row(7), Mode::Row(Update));
    assert_eq!(settled.victims.iter().map(|d| d.victim).collect::<Vec<_>>(), [id(2)]);
    assert_eq!(settled.granted, [], "2 has its share until it ends");
    assert_eq!(locks.release(id(2)), [id(1)]);
}

#[test]
fn a_table_is_locked_against_whoever_has_rows_of_it() {
    let mut locks = Locks::default();
    let table = Resource::table(TableId(1));
    assert!(!locks.is_in_use(TableId(1)));
    assert!(locks.take(party(1, 1), &table, Mode::Shared));
    assert!(locks.take(party(2, 1), &table, Mode::Shared));
    assert!(locks.ask(1, 1, 7, Update));
    assert!(locks.ask(2, 1, 8, NoKeyUpdate));
    assert_eq!(locks.others_in(TableId(1), id(1)), [id(2)]);
    assert_eq!(locks.freed_by_others(TableId(1), id(2)), [], "what isn't deleted frees no key");
    let keys = Resource { table: TableId(1), part: Part::Keys([7].into()) };
    assert!(locks.take(party(1, 1), &keys, Mode::Row(Update)));
    assert_eq!(locks.freed_by_others(TableId(1), id(2)), [Box::from([7])]);
    assert_eq!(locks.freed_by_others(TableId(1), id(1)), []);
    assert!(!locks.take(party(3, 1), &table, Mode::Exclusive));
    assert_eq!(locks.wait(party(3, 1), &table, Mode::Exclusive), Settled::default());
    assert!(!locks.take(party(4, 1), &table, Mode::Shared), "who comes later stands behind it");
    assert_eq!(locks.wait(party(4, 1), &table, Mode::Shared), Settled::default());
    assert_eq!(locks.waits_for(id(4)), [id(3)]);
    assert!(locks.take(party(2, 2), &table, Mode::Shared), "who has it has it");
    assert_eq!(locks.release(id(1)), []);
    assert_eq!(locks.release(id(2)), [id(3)]);
    assert!(!locks.take(party(1, 1), &table, Mode::Shared));
    assert_eq!(locks.release(id(3)), [id(4)]);
}

#[test]
fn what_a_statement_does_not_need_in_the_end_is_given_back() {
    let needs = |key: u8, mode| move |resource: &Resource| (*resource == row(key)).then_some(Mode::Row(mode));
    let mut locks = Locks::default();
    assert!(locks.ask(9, 1, 1, Update));
    // It has the row 2 of an earlier statement, and wants to add it, 3 and 1.
    assert!(locks.ask(1, 1, 2, KeyShare));
    for key in [2, 3] {
        assert!(locks.ask(1, 2, key, Update));
    }
    assert!(!locks.ask(1, 2, 1, Update));
    // Of those who wait for the row 1, only who wants to delete or add it looks again.
    assert!(!locks.ask(2, 1, 1, NoKeyUpdate));
    assert!(!locks.ask(3, 1, 1, Update));
    assert!(!locks.ask(4, 1, 1, KeyShare));
    assert!(!locks.ask(5, 1, 2, Share));
    assert!(!locks.ask(6, 1, 3, Update));
    assert_eq!(locks.release(id(9)), [id(1)]);
    assert_eq!(locks.confine(party(1, 2), needs(1, NoKeyUpdate)), [id(5), id(6), id(4), id(3)]);
    assert!(locks.is_waiting(id(2)) && !locks.is_waiting(id(3)));
    assert!(!locks.has(id(3), &row(1)) && locks.has(id(4), &row(1)));
    assert_eq!(locks.held(id(1)).count(), 2);
    // Once more is no different, and what needs more than it has takes that as ever.
    assert_eq!(locks.confine(party(1, 2), needs(1, NoKeyUpdate)), []);
    assert_eq!(locks.confine(party(1, 2), needs(1, Update)), []);
    assert!(locks.is_blocked(id(7), &row(1), Mode::Row(Share)));
    // What the earlier statement took is still its, and all of the later one's goes with it.
    assert_eq!(locks.release_after(id(1), 1), [id(2)]);
    assert!(locks.has(id(1), &row(2)) && !locks.has(id(1), &row(1)));
    for who in 1..=6 {
        locks.release(id(who));
    }
    assert!(locks.is_empty() && locks.owners.is_empty());
}

/// xorshift: the same numbers in every run.
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

/// The same promises, by going through everything each time.
#[derive(Default)]
struct Model {
    /// Who got what, by which statement.
    held: Vec<(u64, u32, u8, RowLock)>,
    /// Who waits, in the order of their coming.
    waits: Vec<(u64, u32, u8, RowLock)>,
}

impl Model {
    fn holders(&self, key: u8) -> impl Iterator<Item = (u64, RowLock)> {
        self.held.iter().filter(move |held| held.2 == key).map(|held| (held.0, held.3))
    }

    fn is_blocked(&self, who: u64, key: u8, mode: RowLock) -> bool {
        self.holders(key).any(|(holder, held)| holder != who && mode.conflicts(held))
    }

    fn serve(&mut self) -> Vec<u64> {
        let mut granted = Vec::new();
        for (who, statement, key, mode) in self.waits.clone() {
            if !self.is_blocked(who, key, mode) {
                self.waits.retain(|wait| wait.0 != who);
                self.held.push((who, statement, key, mode));
                granted.push(who);
            }
        }
        granted
    }

    /// The party's statement needs no more than this of what it has taken. Gives those who have got a lock, or are to look
    /// again.
    fn confine(&mut self, who: u64, statement: u32, needs: &[Option<RowLock>]) -> Vec<u64> {
        let mut lowered = Vec::new();
        for (key, need) in (0..).zip(needs.iter().copied()) {
            let (by_this, before): (Vec<_>, Vec<_>) = self
                .held
                .iter()
                .filter(|held| held.0 == who && held.2 == key)
                .partition(|held| held.1 == statement);
            let strongest = |held: &[&(u64, u32, u8, RowLock)]| held.iter().map(|held| held.3).max();
            let (now, before) = (strongest(&by_this), strongest(&before));
            if now <= before.max(need) {
                continue;
            }
            self.held.retain(|held| held.0 != who || held.2 != key || held.1 != statement);
            self.held
                .extend(need.filter(|need| Some(*need) > before).map(|need| (who, statement, key, need)));
            lowered.push(key);
        }
        let mut told = self.serve();
        let looks = |wait: &(u64, u32, u8, RowLock)| lowered.contains(&wait.2) && wait.3 == Update;
        told.extend(self.waits.iter().filter(|wait| looks(wait)).map(|wait| wait.0));
        self.waits.retain(|wait| !looks(wait));
        told
    }

    fn waits_for(&self, who: u64) -> HashSet<u64> {
        let Some((_, _, key, mode)) = self.waits.iter().find(|wait| wait.0 == who).copied() else {
            return HashSet::new();
        };
        let others = self.holders(key).filter(|(other, held)| *other != who && mode.conflicts(*held));
        others.map(|(other, _)| other).collect()
    }

    /// Those who wait, over however many others, for themselves.
    fn circular(&self) -> HashSet<u64> {
        let reaches_itself = |start: u64| {
            let mut seen = HashSet::new();
            let mut open: Vec<u64> = self.waits_for(start).into_iter().collect();
            while let Some(next) = open.pop() {
                if next == start {
                    return true;
                }
                if seen.insert(next) {
                    open.extend(self.waits_for(next));
                }
            }
            false
        };
        (0..PARTIES).filter(|who| reaches_itself(*who)).collect()
    }
}

const PARTIES: u64 = 6;
const KEYS: u8 = 4;

#[test]
fn chance_finds_no_difference_to_a_naive_model() {
    compare_by_chance(PLAIN_LOCKS);
}

#[test]
fn nor_where_locks_are_hashes() {
    compare_by_chance(0);
    compare_by_chance(2);
}

fn compare_by_chance(plain: usize) {
    let modes = [KeyShare, Share, NoKeyUpdate, Update];
    let (mut waited, mut deadlocked) = (0, 0);
    for seed in 1..=400 {
        let mut chance = Chance(0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(seed));
        let (mut locks, mut model) = (Locks { plain, ..Locks::default() }, Model::default());
        let mut statements = [1_u32; PARTIES as usize];
        for _ in 0..120 {
            let who = chance.below(PARTIES);
            let statement = statements[who as usize];
            let waits = model.waits.iter().any(|wait| wait.0 == who);
            let sorted = |mut granted: Vec<TransactionId>| {
                granted.sort_unstable();
                granted.into_iter().map(|id| id.sequence).collect::<Vec<_>>()
            };
            let served = |model: &mut Model| {
                let mut granted = model.serve();
                granted.sort_unstable();
                granted
            };
            match chance.below(10) {
                0 => {
                    model.held.retain(|held| held.0 != who);
                    model.waits.retain(|wait| wait.0 != who);
                    assert_eq!(sorted(locks.release(id(who))), served(&mut model), "seed {seed}");
                }
                1 => {
                    let to = chance.below(u64::from(statement)) as u32;
                    model.held.retain(|held| held.0 != who || held.1 <= to);
                    model.waits.retain(|wait| wait.0 != who || wait.1 <= to);
                    assert_eq!(sorted(locks.release_after(id(who), to)), served(&mut model), "seed {seed}");
                }
                2 if waits => {
                    model.waits.retain(|wait| wait.0 != who);
                    assert_eq!(sorted(locks.cancel(id(who))), served(&mut model), "seed {seed}");
                }
                _ if waits => {}
                3 => statements[who as usize] += 1,
                // What is kept as hashes isn't given back like this.
                4 if plain == PLAIN_LOCKS => {
                    let needs: Vec<_> =
                        (0..KEYS).map(|_| modes.get(chance.below(6) as usize).copied()).collect();
                    let mut told = model.confine(who, statement, &needs);
                    told.sort_unstable();
                    let need = |resource: &Resource| {
                        let key = (0..KEYS).find(|key| *resource == row(*key))?;
                        needs[usize::from(key)].map(Mode::Row)
                    };
                    assert_eq!(sorted(locks.confine(party(who, statement), need)), told, "seed {seed}");
                }
                _ => {
                    let (key, mode) = (chance.below(u64::from(KEYS)) as u8, modes[chance.below(4) as usize]);
                    let blocked = model.is_blocked(who, key, mode);
                    let taken = locks.take(party(who, statement), &row(key), Mode::Row(mode));
                    assert_eq!(taken, !blocked, "seed {seed}");
                    if taken {
                        model.held.push((who, statement, key, mode));
                        continue;
                    }
                    waited += 1;
                    model.waits.push((who, statement, key, mode));
                    let settled = locks.wait(party(who, statement), &row(key), Mode::Row(mode));
                    let mut granted = Vec::new();
                    for Deadlock { victim, .. } in &settled.victims {
                        deadlocked += 1;
                        assert!(model.circular().contains(&victim.sequence), "seed {seed}");
                        model.waits.retain(|wait| wait.0 != victim.sequence);
                        granted.extend(model.serve());
                    }
                    granted.sort_unstable();
                    assert_eq!(sorted(settled.granted), granted, "seed {seed}");
                    assert_eq!(model.circular(), HashSet::new(), "seed {seed}");
                }
            }
            for who in 0..PARTIES {
                let found: HashSet<u64> = locks.waits_for(id(who)).iter().map(|id| id.sequence).collect();
                assert_eq!(found, model.waits_for(who), "seed {seed}");
            }
            assert_eq!(locks.waiting(), model.waits.len(), "seed {seed}");
        }
        for who in 0..PARTIES {
            locks.release(id(who));
        }
        assert!(locks.is_empty() && locks.owners.is_empty(), "seed {seed}");
    }
    assert!(waited > 1000 && deadlocked > 100, "it has met what it is about: {waited}, {deadlocked}");
}
