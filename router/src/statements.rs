//! The plan cache, shared by all sessions.
//!
//! In comes a statement's text; out goes the plan that serves it, if one was made before from a text with the same
//! key, the same declared parameter types, the same settings, the same catalog, and the same value wherever the plan
//! depends on a literal. A plan of an older catalog is never given out.

use dashmap::DashMap;
use dialect::Type;
use planner::plan::{Action, Plan, SessionCommand};
use planner::text::Text;
use planner::{Planned, Settings};
use proto::SchemaVersion;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Plans that differ in pinned literals, declared types or settings alone, under one key.
const MOST_VARIANTS: usize = 16;

/// Texts longer than this aren't worth keeping: the key of a big INSERT would be most of the cache.
const MOST_KEY_BYTES: usize = 16 * 1024;

/// Plans by the key of their texts.
#[derive(Debug)]
pub struct PlanCache {
    entries: DashMap<Box<[u8]>, Entry>,
    capacity: usize,
    clock: AtomicU64,
}

#[derive(Debug)]
struct Entry {
    version: SchemaVersion,
    used: AtomicU64,
    variants: Vec<Variant>,
}

#[derive(Debug)]
struct Variant {
    declared: Box<[Option<Type>]>,
    settings: Settings,
    pinned: Vec<(u32, String)>,
    plan: Arc<Plan>,
}

impl Variant {
    fn serves(&self, text: &Text, declared: &[Option<Type>], settings: &Settings) -> bool {
        *self.declared == *declared
            && self.settings == *settings
            && self.pinned.iter().all(|(slot, value)| text.literal(*slot).as_deref() == Some(value.as_str()))
    }
}

impl PlanCache {
    /// A cache of so many keys.
    pub fn new(capacity: usize) -> Self {
        Self { entries: DashMap::new(), capacity, clock: AtomicU64::new(0) }
    }

    /// The plan that serves a text, if there is one.
    pub fn get(
        &self,
        text: &Text,
        declared: &[Option<Type>],
        settings: &Settings,
        version: SchemaVersion,
    ) -> Option<Arc<Plan>> {
        let entry = self.entries.get(&text.key)?;
        if entry.version != version {
            return None;
        }
        let variant = entry.variants.iter().find(|variant| variant.serves(text, declared, settings))?;
        entry.used.store(self.clock.load(Ordering::Relaxed), Ordering::Relaxed);
        Some(variant.plan.clone())
    }

    /// Keeps a plan that was made at this version of the catalog, if it's of a kind that comes again.
    pub fn insert(
        &self,
        text: &Text,
        declared: &[Option<Type>],
        settings: &Settings,
        version: SchemaVersion,
        planned: &Planned,
    ) {
        let comes_again = match &planned.plan.action {
            Action::Query(_) | Action::Insert(_) | Action::Modify(_) => true,
            Action::CopyIn(_) | Action::CopyOut(_) => true,
            Action::Session(SessionCommand::Begin { .. } | SessionCommand::Commit { .. }) => true,
            Action::Schema(_) | Action::Session(_) | Action::Explain(_) => false,
        };
        if !comes_again || text.key.len() > MOST_KEY_BYTES {
            return;
        }
        if self.entries.len() >= self.capacity {
            self.make_room(version);
        }
        let variant = Variant {
            declared: declared.into(),
            settings: settings.clone(),
            pinned: planned.pinned.clone(),
            plan: planned.plan.clone(),
        };
        let now = self.clock.fetch_add(1, Ordering::Relaxed);
        let mut entry = self.entries.entry(text.key.clone()).or_insert_with(|| Entry {
            version,
            used: AtomicU64::new(now),
            variants: Vec::new(),
        });
        if entry.version > version {
            return;
        }
        if entry.version < version {
            entry.version = version;
            entry.variants.clear();
        }
        entry.used.store(now, Ordering::Relaxed);
        if entry.variants.len() >= MOST_VARIANTS {
            entry.variants.remove(0);
        }
        entry.variants.push(variant);
    }

    /// Drops what is of an older catalog, and then the quarter that was used least lately.
    fn make_room(&self, version: SchemaVersion) {
        self.entries.retain(|_, entry| entry.version >= version);
        if self.entries.len() < self.capacity {
            return;
        }
        let mut uses: Vec<_> = self.entries.iter().map(|e| e.used.load(Ordering::Relaxed)).collect();
        let at = uses.len() / 4;
        let (_, oldest, _) = uses.select_nth_unstable(at);
        let oldest = *oldest;
        self.entries.retain(|_, entry| entry.used.load(Ordering::Relaxed) > oldest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use planner::Rules;
    use planner::plan::{Gather, Query};
    use planner::text::split;

    fn text(sql: &str) -> Text {
        split(sql).unwrap().remove(0)
    }

    fn planned(pinned: Vec<(u32, String)>) -> Planned {
        let gather = Gather::Stream { order: vec![], offset: None, limit: None, visible: 0 };
        let action = Action::Query(Query { fragments: vec![], gather, lock: None });
        let (columns, reads_copies) = (Some(vec![]), false);
        let plan = Plan { parameters: vec![], columns, scalars: vec![], first: vec![], reads_copies, action };
        Planned { plan: Arc::new(plan), pinned }
    }

    #[test]
    fn texts_that_differ_in_free_literals_share_a_plan() {
        let cache = PlanCache::new(10);
        let (v1, settings) = (SchemaVersion(1), Settings::default());
        let made = planned(vec![(1, "5".into())]);
        cache.insert(&text("SELECT a FROM t WHERE a = 1 LIMIT 5"), &[], &settings, v1, &made);
        let get = |sql: &str, version| cache.get(&text(sql), &[], &settings, version);
        assert!(get("select  A from t where a = 77 limit 5", v1).is_some());
        assert!(get("SELECT a FROM t WHERE a = 1 LIMIT 6", v1).is_none(), "the pinned literal differs");
        assert!(get("SELECT a FROM t WHERE a = 'x' LIMIT 5", v1).is_none(), "a literal of another kind");
        assert!(get("SELECT a FROM t WHERE a = 1 LIMIT 5", SchemaVersion(2)).is_none());
        let other = Settings { rules: Rules::NONE };
        let again = text("SELECT a FROM t WHERE a = 1 LIMIT 5");
        assert!(cache.get(&again, &[], &other, v1).is_none());
        assert!(cache.get(&again, &[Some(Type::Int4)], &settings, v1).is_none());
    }

    #[test]
    fn it_stays_within_its_bound_and_forgets_older_catalogs() {
        let cache = PlanCache::new(8);
        let settings = Settings::default();
        for i in 0..100 {
            cache.insert(&text(&format!("SELECT c{i}")), &[], &settings, SchemaVersion(1), &planned(vec![]));
        }
        assert!(cache.entries.len() <= 8);
        assert!(cache.get(&text("SELECT c99"), &[], &settings, SchemaVersion(1)).is_some());
        cache.insert(&text("SELECT c99"), &[], &settings, SchemaVersion(2), &planned(vec![]));
        assert!(cache.get(&text("SELECT c99"), &[], &settings, SchemaVersion(1)).is_none());
    }
}
