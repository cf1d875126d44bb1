//! Images of two nodes driven by hand: every packet is carried, lost or changed by the test, and time is a number.

use super::*;
use crate::connection::Cancel;
use crate::engine::Limits;
use crate::packet::Packet;
use proto::{GroupId, NodeId};
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tempfile::TempDir;

pub(super) use crate::engine::Engine;

pub(super) const LIMITS: Limits = Limits {
    transaction_bytes: 1 << 20,
    staged_bytes: 4 << 20,
    batch_bytes: 1 << 20,
    checkpoint_bytes: 1 << 30,
    hold_bytes: 1 << 30,
    end_bytes: 1 << 30,
    remember_for: Duration::from_secs(3600),
    remember_rows: 1 << 10,
    remember_bytes: 1 << 20,
};
const GROUP: GroupId = GroupId(7);
const SENDER: NodeId = NodeId(1);
const RECEIVER: NodeId = NodeId(2);
const SECOND: Duration = Duration::from_secs(1);
const SETTINGS: Settings =
    Settings { chunk_bytes: 4096, window: 4, bytes_per_second: 1 << 30, patience: SECOND };

/// A database of a group whose members are 1 and 2, with rows of 300 bytes.
pub(super) fn database(directory: &Path, rows: i64) -> Engine {
    let table = "CREATE TABLE t1 (c1 INTEGER PRIMARY KEY, c2 TEXT) STRICT".to_owned();
    let mut engine = Engine::create(directory, &[1], &[table], LIMITS).unwrap();
    engine.begin(1).unwrap();
    (0..rows).for_each(|row| insert(&mut engine, row));
    engine.seal(0).unwrap().unwrap();
    engine.commit(1).unwrap();
    engine
}

/// Inserts a row in the open batch.
pub(super) fn insert(engine: &mut Engine, row: i64) {
    let run = Box::new(move |connection: &crate::Stage<'_>| {
        connection
            .prepare_cached("INSERT INTO t1 VALUES (?1, printf('%0300d', ?1))")
            .and_then(|mut statement| statement.execute([row]))
            .map_err(dialect::sqlite::error)?;
        Ok(Bytes::new())
    });
    let outcome = engine.run(None, run, &Cancel::default()).unwrap();
    assert!(matches!(outcome, crate::engine::Outcome::Done(Ok(_))), "{outcome:?}");
}

/// What becomes of a packet.
type Fate = Box<dyn FnMut(NodeId, Packet) -> Option<Packet>>;

struct Pair {
    directory: TempDir,
    _engine: Engine,
    sender: Images,
    receiver: Images,
    now: Duration,
    fate: Fate,
    events: Vec<(NodeId, Event)>,
    /// The bytes of all chunks that were sent.
    carried: usize,
    packets: usize,
}

impl Pair {
    fn new(rows: i64) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let engine = database(&directory.path().join("1"), rows);
        let now = SECOND;
        let mut pair = Self {
            directory,
            _engine: engine,
            sender: Images::new(SETTINGS, now),
            receiver: Images::new(SETTINGS, now),
            now,
            fate: Box::new(|_, packet| Some(packet)),
            events: Vec::new(),
            carried: 0,
            packets: 0,
        };
        pair.sender.add(GROUP, pair.path(SENDER), now);
        pair.receiver.add(GROUP, pair.path(RECEIVER), now);
        pair
    }

    fn path(&self, node: NodeId) -> PathBuf {
        self.directory.path().join(node.to_string())
    }

    fn images(&mut self, node: NodeId) -> &mut Images {
        if node == SENDER { &mut self.sender } else { &mut self.receiver }
    }

    /// Lets one node work a slice, and carries what it sends. Gives when it next has something to do.
    fn step(&mut self, node: NodeId) -> Turn {
        let now = self.now;
        let turn = self.images(node).step(now);
        let events = self.images(node).take_events();
        self.events.extend(events.into_iter().map(|event| (node, event)));
        for (to, packet) in self.images(node).take_packets() {
            self.packets += 1;
            if let Packet::ImageChunk(chunk) = &packet {
                self.carried += chunk.data.len();
            }
            // What travels is bytes.
            let packet = Packet::decode(packet.encode()).unwrap();
            match (self.fate)(to, packet) {
                Some(Packet::ImageRequest(request)) => self.images(to).request(node, request, now),
                Some(Packet::ImageChunk(chunk)) => self.images(to).chunk(node, chunk, now),
                _ => {}
            }
        }
        turn
    }

    /// Goes on until something has come to pass.
    fn run(&mut self, what: &str, mut done: impl FnMut(&Pair) -> bool) {
        for _ in 0..200_000 {
            if done(self) {
                return;
            }
            let packets = self.packets;
            let turns = [self.step(SENDER), self.step(RECEIVER)];
            if turns.contains(&Turn::Worked) || self.packets > packets {
                continue;
            }
            let due = turns.iter().filter_map(|turn| match turn {
                Turn::IdleUntil(due) => *due,
                Turn::Worked => None,
            });
            let Some(due) = due.min() else { break };
            assert!(due > self.now || self.packets > packets, "{what}: it spins");
            self.now = due;
        }
        assert!(done(self), "{what}: nothing more happens; {:?}", self.events);
    }

    fn made(&self) -> Option<Image> {
        self.events.iter().rev().find_map(|(_, event)| match event {
            Event::Made(_, image) => Some(image.clone()),
            _ => None,
        })
    }

    fn complete(&self) -> Option<Received> {
        self.events.iter().rev().find_map(|(_, event)| match event {
            Event::Complete(_, received) => Some(received.clone()),
            _ => None,
        })
    }

    /// Has the sender make an image.
    fn make(&mut self) -> Image {
        self.events.clear();
        self.sender.want(GROUP, 1, 0);
        self.run("make", |pair| pair.made().is_some());
        self.made().unwrap()
    }

    /// Offers an image to the receiver.
    fn offer(&mut self, image: &Image) {
        self.sender.offered(GROUP, RECEIVER, image.id, self.now);
        self.receiver.fetch(GROUP, source(image), self.now);
    }

    fn fetch(&mut self, image: &Image) -> Received {
        self.offer(image);
        self.run("fetch", |pair| pair.complete().is_some());
        let received = self.complete().unwrap();
        let sent = fs::read(file::made(&self.path(SENDER), image.id)).unwrap();
        assert!(fs::read(&received.path).unwrap() == sent, "what arrived isn't what was sent");
        received
    }

    /// The receiver's process is killed and starts again.
    fn restart_receiver(&mut self) {
        self.receiver = Images::new(SETTINGS, self.now);
        let path = self.path(RECEIVER);
        self.receiver.add(GROUP, path, self.now);
    }

    fn files(&self, node: NodeId) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.path(node)) else { return Vec::new() };
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names.filter(|name| !name.starts_with("replica.sqlite")).collect();
        names.sort_unstable();
        names
    }
}

fn source(image: &Image) -> Source {
    let snapshot = offer(image, 3);
    assert_eq!(offered(&snapshot).as_ref(), Some(image));
    Source { node: SENDER, image: image.clone(), snapshot }
}

#[test]
fn an_image_is_made_offered_received_and_forgotten() {
    let mut pair = Pair::new(400);
    assert_eq!(pair.sender.begins(pair.now), None);
    pair.sender.want(GROUP, 1, 0);
    assert_eq!(pair.sender.begins(pair.now), Some(GROUP), "the log is to be held before it begins");
    let image = pair.make();
    assert!(image.length > 100_000 && image.index == 1, "{image:?}");
    assert_eq!(pair.sender.hold(GROUP), Some(1));

    let received = pair.fetch(&image);
    assert_eq!(received.source, source(&image));
    assert_eq!(pair.carried as u64, image.length, "each byte travels once");
    assert_eq!(pair.receiver.progress(GROUP), Some((image.length, image.length)));
    pair.receiver.settled(GROUP);
    assert_eq!((pair.receiver.progress(GROUP), pair.files(RECEIVER)), (None, vec![]));

    // Raft must hear that the receiver asks no more, and the image goes when nobody wants it.
    let begin = pair.now;
    pair.run("silence", |pair| pair.events.contains(&(SENDER, Event::Silent(GROUP, RECEIVER))));
    assert!(pair.now - begin >= 5 * SECOND);
    assert_eq!(pair.sender.hold(GROUP), Some(1));
    pair.run("expiry", |pair| pair.events.contains(&(SENDER, Event::Gone(GROUP, image.id))));
    assert!(pair.now - begin >= 59 * SECOND);
    assert_eq!((pair.sender.hold(GROUP), pair.files(SENDER)), (None, vec![]));
}

#[test]
fn a_snapshot_that_makes_no_sense_offers_nothing() {
    assert_eq!(offered(&Snapshot::default()), None);
    let mut snapshot = Snapshot::default();
    snapshot.mut_metadata().index = 9;
    snapshot.data = vec![0xff; 9].into();
    assert_eq!(offered(&snapshot), None);
}

#[test]
fn one_image_serves_several_members_but_none_that_came_later() {
    let mut pair = Pair::new(50);
    let image = pair.make();
    pair.sender.want(GROUP, 1, 1);
    assert_eq!(pair.sender.begins(pair.now), None, "the one that is there will do");
    // Member 2 isn't in the group yet, as the database has it; an image would be ignored by it.
    pair.events.clear();
    pair.sender.want(GROUP, 2, 0);
    pair.run("nothing", |pair| pair.sender.begins(pair.now).is_none());
    assert_eq!(pair.made(), None);
    assert_eq!(pair.files(SENDER), [format!("image-{}.sqlite", image.id)]);
}

#[test]
fn lost_and_repeated_packets_delay_it_only() {
    let mut pair = Pair::new(400);
    let image = pair.make();
    let mut count = 0;
    pair.fate = Box::new(move |_, packet| {
        count += 1;
        (count % 3 != 0).then_some(packet)
    });
    pair.fetch(&image);
    assert!(pair.carried as u64 > image.length);
}

#[test]
fn a_damaged_chunk_is_refused_and_asked_for_again() {
    let mut pair = Pair::new(400);
    let image = pair.make();
    let mut count = 0;
    pair.fate = Box::new(move |_, packet| match packet {
        Packet::ImageChunk(mut chunk) => {
            count += 1;
            if count % 5 == 0 {
                let mut data = chunk.data.to_vec();
                data[7] ^= 1;
                chunk.data = data.into();
            }
            Some(Packet::ImageChunk(chunk))
        }
        packet => Some(packet),
    });
    let begin = pair.now;
    pair.fetch(&image);
    assert!(pair.carried as u64 > image.length);
    assert!(pair.now - begin < SECOND, "damage doesn't wait for patience to end");
}

#[test]
fn an_interrupted_transfer_goes_on_where_it_was() {
    let mut pair = Pair::new(2000);
    let image = pair.make();
    pair.offer(&image);
    for part in 1..4 {
        let enough = image.length * part / 4;
        pair.run("a part", |pair| pair.receiver.progress(GROUP).is_some_and(|(done, _)| done > enough));
        pair.restart_receiver();
        assert_eq!(pair.receiver.progress(GROUP), None);
        pair.offer(&image);
    }
    pair.fetch(&image);
    let again = pair.carried as u64 - image.length;
    assert!(again <= 3 * 4 * 4096, "no more than a window travels again at each restart: {again}");
}

#[test]
fn what_was_damaged_on_disk_is_fetched_again() {
    let mut pair = Pair::new(400);
    let image = pair.make();
    pair.offer(&image);
    pair.run("half", |pair| pair.receiver.progress(GROUP).is_some_and(|(done, all)| done > all / 2));
    let path = file::incoming(&pair.path(RECEIVER), image.id);
    let mut bytes = fs::read(&path).unwrap();
    bytes[5000] ^= 0x40;
    fs::write(&path, bytes).unwrap();
    pair.restart_receiver();
    pair.fetch(&image);
    assert!(pair.carried as u64 > image.length * 5 / 4);
}

#[test]
fn who_has_lost_the_image_says_so_and_another_is_taken() {
    let mut pair = Pair::new(400);
    let first = pair.make();
    pair.offer(&first);
    pair.run("a part", |pair| pair.receiver.progress(GROUP).is_some_and(|(done, _)| done > 9000));
    // The sender restarts, and has made another meanwhile.
    let index = pair._engine.applied() + 1;
    pair._engine.begin(1).unwrap();
    insert(&mut pair._engine, 1000);
    pair._engine.seal(0).unwrap().unwrap();
    pair._engine.commit(index).unwrap();
    pair.sender = Images::new(SETTINGS, pair.now);
    let path = pair.path(SENDER);
    pair.sender.add(GROUP, path, pair.now);
    assert_eq!(pair.files(SENDER), Vec::<String>::new());
    let second = pair.make();
    assert_ne!(first.id, second.id);
    pair.fetch(&second);
    assert!(pair.events.contains(&(SENDER, Event::Silent(GROUP, RECEIVER))), "the leader hears of it");
    assert_eq!(pair.files(RECEIVER), [format!("incoming-{}.part", second.id)]);
}

#[test]
fn an_offer_does_not_end_what_is_arriving_unless_it_stalls() {
    let mut pair = Pair::new(400);
    let first = pair.make();
    pair.offer(&first);
    pair.run("a part", |pair| pair.receiver.progress(GROUP).is_some_and(|(done, _)| done > 9000));
    let other = Image { id: ImageId(9), ..first.clone() };
    pair.receiver.fetch(GROUP, Source { node: NodeId(3), ..source(&other) }, pair.now);
    pair.run("complete", |pair| pair.complete().is_some());
    assert_eq!(pair.complete().unwrap().source.image, first);
    pair.receiver.settled(GROUP);

    // Now nothing comes any more: the other's turn.
    pair.offer(&first);
    pair.run("a part", |pair| pair.receiver.progress(GROUP).is_some_and(|(done, _)| done > 9000));
    pair.receiver.fetch(GROUP, Source { node: NodeId(3), ..source(&other) }, pair.now);
    let asked = std::rc::Rc::new(std::cell::Cell::new(false));
    let seen = asked.clone();
    pair.fate = Box::new(move |to, packet| {
        if to == NodeId(3) {
            seen.set(true);
        }
        drop(packet);
        None
    });
    pair.run("the other is asked", |_| asked.get());
}

#[test]
fn what_nobody_offers_again_is_removed() {
    let mut pair = Pair::new(400);
    let image = pair.make();
    pair.offer(&image);
    pair.run("a part", |pair| pair.receiver.progress(GROUP).is_some_and(|(done, _)| done > 9000));
    pair.restart_receiver();
    assert_eq!(pair.files(RECEIVER).len(), 1);
    let begin = pair.now;
    pair.run("removal", |pair| pair.files(RECEIVER).is_empty());
    assert!(pair.now - begin >= 60 * SECOND);
}

#[test]
fn no_more_is_sent_than_is_allowed() {
    let mut pair = Pair::new(400);
    let image = pair.make();
    pair.sender = Images::new(Settings { bytes_per_second: 64 << 10, ..SETTINGS }, pair.now);
    let path = pair.path(SENDER);
    pair.sender.add(GROUP, path, pair.now);
    pair.make();
    let begin = pair.now;
    pair.fetch(&image);
    let least = Duration::from_millis(image.length * 1000 / (64 << 10)) - Duration::from_millis(300);
    let took = pair.now - begin;
    assert!(took > least && took < 2 * least, "{took:?} for {} bytes", image.length);
}

/// Whatever is written there finds no space.
fn fill_disk(path: &Path) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::os::unix::fs::symlink("/dev/full", path).unwrap();
    let error = fs::OpenOptions::new().write(true).open(path).and_then(|mut file| file.write_all(b"x"));
    assert_eq!(error.unwrap_err().kind(), std::io::ErrorKind::StorageFull);
}

#[test]
fn a_disk_that_refuses_is_tried_again_later() {
    let mut pair = Pair::new(400);
    // A directory in the image's place can't be written to.
    let obstacle = file::making(&pair.path(SENDER)).join("x");
    fs::create_dir_all(&obstacle).unwrap();
    pair.sender.want(GROUP, 1, 0);
    let begin = pair.now;
    pair.run("an attempt", |pair| pair.sender.begins(pair.now).is_none());
    assert_eq!(pair.sender.hold(GROUP), None, "the log isn't held for an image that isn't made");
    fs::remove_dir_all(file::making(&pair.path(SENDER))).unwrap();
    let image = pair.make();
    assert!(pair.now - begin >= 5 * SECOND);

    let obstacle = file::incoming(&pair.path(RECEIVER), image.id);
    fill_disk(&obstacle);
    pair.offer(&image);
    pair.run("an attempt", |pair| pair.receiver.progress(GROUP).is_none());
    fs::remove_file(&obstacle).unwrap();
    pair.offer(&image);
    assert_eq!(pair.receiver.progress(GROUP), None, "not at once");
    let begin = pair.now;
    // The leader offers it again when it hears that the receiver is silent.
    pair.run("silence", |pair| pair.events.contains(&(SENDER, Event::Silent(GROUP, RECEIVER))));
    assert!(pair.now - begin >= 5 * SECOND);
    pair.fetch(&image);
}

#[test]
fn few_images_are_received_at_once_and_the_others_stay_alive() {
    let mut pair = Pair::new(100);
    let image = pair.make();
    let groups: Vec<GroupId> = (20..30).map(GroupId).collect();
    for group in &groups {
        let directory = pair.directory.path().join(format!("many-{group}"));
        pair.receiver.add(*group, directory, pair.now);
        pair.receiver.fetch(*group, source(&image), pair.now);
    }
    let Turn::Worked = pair.receiver.step(pair.now) else { panic!("it begins") };
    pair.receiver.step(pair.now);
    pair.receiver.take_packets();
    pair.now += SECOND;
    pair.receiver.step(pair.now);
    let mut heard = std::collections::BTreeMap::new();
    for (to, packet) in pair.receiver.take_packets() {
        assert_eq!(to, SENDER);
        let Packet::ImageRequest(request) = packet else { panic!("only requests") };
        *heard.entry(request.group).or_insert(0) += request.length;
    }
    assert_eq!(heard.len(), groups.len(), "each says that it is still there: {heard:?}");
    assert_eq!(heard.values().filter(|bytes| **bytes > 0).count(), 4, "{heard:?}");
}
