use super::super::super::trace::SECOND;
use super::Outcome::{Committed, Failed, Unknown};
use super::*;

struct Case {
    history: History,
    lists: BTreeMap<Key, Vec<Element>>,
    clock: WorldClock,
}

impl Case {
    fn new(lists: &[(Key, &[Element])]) -> Self {
        let lists = lists.iter().map(|(key, list)| (*key, list.to_vec())).collect();
        let clock = WorldClock::default();
        Self { history: History::new(clock.clone()), lists, clock }
    }

    fn begin(&mut self, line: Option<Line>) -> Number {
        self.history.begin(format!("T{}", self.history.transactions.len()), None, line)
    }

    fn wrote(&mut self, appends: &[(Key, Element)], outcome: Outcome) -> Number {
        self.wrote_over(None, appends, outcome)
    }

    fn wrote_over(&mut self, line: Option<Line>, appends: &[(Key, Element)], outcome: Outcome) -> Number {
        let number = self.begin(line);
        for (key, element) in appends {
            self.history.append(number, *key, *element);
        }
        self.history.end(number, outcome);
        number
    }

    fn read(&mut self, lists: &[(Key, &[Element])]) {
        self.read_at(Level::Strong, None, lists);
    }

    fn read_at(&mut self, level: Level, line: Option<Line>, lists: &[(Key, &[Element])]) {
        let number = self.begin(line);
        self.read_in(number, level, lists);
        self.history.end(number, Committed);
    }

    fn read_in(&mut self, number: Number, level: Level, lists: &[(Key, &[Element])]) {
        let asked = self.history.ask(number, level);
        let lists = lists.iter().map(|(key, list)| (*key, list.to_vec())).collect();
        self.history.read(number, asked, lists, true).unwrap();
    }

    fn fails(&self, why: &str) {
        let judged = self.history.judge(&self.lists, true);
        assert!(judged.as_ref().is_err_and(|error| error.starts_with(why)), "{why}: {judged:?}");
    }
}

#[test]
fn what_is_well_passes() {
    let mut case = Case::new(&[(1, &[10, 11, 20]), (2, &[12, 21])]);
    case.wrote(&[(1, 10), (1, 11), (2, 12)], Committed);
    case.read(&[(1, &[10, 11]), (2, &[12])]);
    case.wrote(&[(1, 20), (2, 21)], Unknown);
    case.wrote(&[(1, 30), (2, 31)], Unknown);
    case.wrote(&[(1, 40)], Failed);
    assert_eq!(case.history.judge(&case.lists, true), Ok(()));
}

#[test]
fn outcomes_must_be_as_they_were_told() {
    let mut case = Case::new(&[(1, &[10]), (2, &[])]);
    case.wrote(&[(1, 10), (2, 11)], Committed);
    case.fails("atomicity");
    let mut case = Case::new(&[(1, &[10]), (2, &[])]);
    case.wrote(&[(1, 10), (2, 11)], Unknown);
    case.fails("atomicity");
    let mut case = Case::new(&[(1, &[10])]);
    case.wrote(&[(1, 10)], Failed);
    case.fails("G1a");
    let mut case = Case::new(&[(1, &[10])]);
    let number = case.history.begin("T".into(), None, None);
    case.history.append(number, 1, 10);
    case.history.undo(number, 0);
    case.history.end(number, Committed);
    case.fails("G1a");
}

#[test]
fn reads_must_be_of_what_was_there() {
    let mut case = Case::new(&[(1, &[10, 20])]);
    case.wrote(&[(1, 10)], Committed);
    case.read(&[(1, &[])]);
    case.wrote(&[(1, 20)], Committed);
    case.fails("stale read");
    let mut case = Case::new(&[(1, &[10, 11])]);
    case.read(&[(1, &[10])]);
    case.wrote(&[(1, 10), (1, 11)], Committed);
    case.fails("G1b");
    let mut case = Case::new(&[(1, &[10]), (2, &[11])]);
    case.read(&[(1, &[10]), (2, &[])]);
    case.wrote(&[(1, 10), (2, 11)], Committed);
    case.fails("torn cut");
    assert_eq!(case.history.judge(&case.lists, false), Ok(()));
    let number = case.history.begin("T".into(), None, None);
    case.history.append(number, 1, 50);
    let asked = case.history.ask(number, Level::Strong);
    assert!(case.history.read(number, asked.clone(), vec![(1, vec![10])], false).is_err());
    case.history.read(number, asked, vec![(1, vec![10, 50])], false).unwrap();
}

/// Three transactions write to list 1, the first of them over a connection whose number comes with it.
fn three() -> (Case, Line) {
    let mut case = Case::new(&[(1, &[10, 20, 30]), (2, &[21])]);
    let line = case.history.connect();
    case.wrote_over(Some(line), &[(1, 10)], Committed);
    case.wrote(&[(1, 20), (2, 21)], Committed);
    case.wrote(&[(1, 30)], Committed);
    (case, line)
}

#[test]
fn a_session_finds_what_it_knows() {
    let (mut case, line) = three();
    // Neither what others have written, nor all of it.
    case.read_at(Level::Session, Some(line), &[(1, &[10, 20]), (2, &[])]);
    assert_eq!(case.history.judge(&case.lists, true), Ok(()));
    let back = case.history.clone();
    case.read_at(Level::Session, Some(line), &[(1, &[10])]);
    case.fails("session: T4 has read 1 elements of list 1, when 2 were known: T3 had read them");
    // What a session has read is no news for anybody else.
    case.history = back;
    for number in [1, 2] {
        case.history.transactions[number].ended = Some((1, Unknown));
    }
    case.read(&[(1, &[10])]);
    assert_eq!(case.history.judge(&case.lists, true), Ok(()));
    let (mut case, line) = three();
    case.read_at(Level::Session, Some(line), &[(1, &[])]);
    case.fails("session: T3 has read 0 elements of list 1, when 1 were known: T0 was acknowledged");
    // The leader is no exception.
    let mut case = Case::new(&[(1, &[10])]);
    let line = case.history.connect();
    case.wrote(&[(1, 10)], Unknown);
    case.read_at(Level::Eventual, Some(line), &[(1, &[10])]);
    case.read_at(Level::Strong, Some(line), &[(1, &[])]);
    case.fails("session: T2 has read 0 elements of list 1, when 1 were known: T1 had read them");
}

#[test]
fn a_token_stands_for_what_was_told_before_it() {
    let (mut case, giver) = three();
    let early = case.history.knowledge(giver);
    case.read_at(Level::Session, Some(giver), &[(1, &[10, 20])]);
    let late = case.history.knowledge(giver);
    let (taker, next) = (case.history.connect(), case.history.connect());
    case.history.bring(taker, &early);
    case.read_at(Level::Session, Some(taker), &[(1, &[10])]);
    assert_eq!(case.history.judge(&case.lists, true), Ok(()));
    // From hand to hand.
    case.history.bring(taker, &late);
    case.history.bring(next, &case.history.knowledge(taker));
    let back = case.history.clone();
    case.read_at(Level::Session, Some(next), &[(1, &[10])]);
    case.fails("session: T5 has read 1 elements of list 1, when 2 were known: T3 had read them");
    // For a transaction alone.
    case.history = back;
    let alone = case.history.connect();
    let number = case.begin(Some(alone));
    case.history.bring_locally(number, &early);
    case.read_in(number, Level::Session, &[(1, &[10])]);
    case.history.end(number, Committed);
    let number = case.begin(Some(alone));
    case.history.bring_locally(number, &late);
    case.history.end(number, Failed);
    case.read_at(Level::Session, Some(alone), &[(1, &[10])]);
    assert_eq!(case.history.judge(&case.lists, true), Ok(()));
    let number = case.begin(Some(alone));
    case.history.bring_locally(number, &late);
    case.read_in(number, Level::Session, &[(1, &[10])]);
    case.fails("session: T8 has read 1 elements of list 1, when 2 were known: T3 had read them");
}

#[test]
fn a_bound_is_kept_by_the_slowest_clock() {
    let (second, slowest) = (SECOND, SECOND * 1000 / SLOWEST);
    let case = |ago: Time, bound: Time| {
        let mut case = Case::new(&[(1, &[10])]);
        case.clock.set(10 * second);
        case.wrote(&[(1, 10)], Committed);
        case.clock.set(10 * second + ago);
        case.read_at(Level::Bounded(bound), None, &[(1, &[])]);
        case
    };
    for case in [case(slowest, second), case(0, 0), case(2 * second, 2 * second)] {
        assert_eq!(case.history.judge(&case.lists, true), Ok(()));
    }
    case(slowest + 3 * MICROSECOND, second).fails("bounded: T1 has read 0 elements of list 1");
    case(3 * MICROSECOND, 0).fails("bounded");
    let mut case = case(0, second);
    case.read_at(Level::Eventual, None, &[(1, &[])]);
    assert_eq!(case.history.judge(&case.lists, true), Ok(()));
    case.read_at(Level::Eventual, None, &[(1, &[11])]);
    case.fails("T3 has read [11] in list 1, which never had that");
}

#[test]
fn a_key_is_used_up_once() {
    let attempts = |lists: &[(Key, &[Element])], outcomes: [Outcome; 2]| {
        let mut case = Case::new(lists);
        for (element, outcome) in [10, 20].into_iter().zip(outcomes) {
            let number = case.wrote(&[(1, element)], outcome);
            case.history.transactions[number].key = Some("k".into());
        }
        case
    };
    attempts(&[(1, &[10, 20])], [Unknown, Unknown]).fails("exactly once");
    attempts(&[(1, &[10, 20])], [Unknown, Committed]).fails("exactly once");
    let mut case = attempts(&[(1, &[10])], [Unknown, Failed]);
    assert_eq!(case.history.judge(&case.lists, true), Ok(()));
    let line = case.history.connect();
    case.history.spent("k", Some(line));
    assert_eq!(case.history.judge(&case.lists, true), Ok(()));
    let back = case.history.clone();
    case.read(&[(1, &[])]);
    case.fails("stale read");
    case.history = back;
    case.read_at(Level::Session, Some(line), &[(1, &[])]);
    case.fails("session: T2 has read 0 elements of list 1, when 1 were known: the key \"k\" was told");
    let mut case = attempts(&[(1, &[])], [Unknown, Failed]);
    assert_eq!(case.history.judge(&case.lists, true), Ok(()));
    case.history.spent("k", None);
    case.fails("exactly once");
}

#[test]
fn there_must_be_an_order() {
    let mut case = Case::new(&[(1, &[10, 20]), (2, &[21, 11])]);
    case.wrote(&[(1, 10), (2, 11)], Committed);
    case.wrote(&[(1, 20), (2, 21)], Committed);
    case.fails("G0");
    let mut case = Case::new(&[(1, &[10]), (2, &[20])]);
    let (one, two) =
        (case.history.begin("T0".into(), None, None), case.history.begin("T1".into(), None, None));
    case.history.append(one, 1, 10);
    case.history.append(two, 2, 20);
    case.read_in(one, Level::Eventual, &[(2, &[20])]);
    case.read_in(two, Level::Eventual, &[(1, &[10])]);
    case.history.end(one, Committed);
    case.history.end(two, Committed);
    case.fails("G1c");
}
