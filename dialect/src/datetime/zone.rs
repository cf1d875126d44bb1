//! Time zones: PostgreSQL's names and offset syntax over the tz database.
//!
//! In comes what SET TimeZone, AT TIME ZONE or a literal may say; out comes the offset at a moment. The database is
//! compiled in, so that every node answers the same whatever its machine has installed.

use proto::WireError;

/// A time zone. Cheap to clone.
#[derive(Clone, Debug)]
pub struct TimeZone {
    zone: jiff::tz::TimeZone,
    name: std::sync::Arc<str>,
}

impl TimeZone {
    /// UTC.
    pub fn utc() -> Self {
        Self { zone: jiff::tz::TimeZone::UTC, name: "UTC".into() }
    }

    /// The zone of a name (`Europe/Berlin`, `UTC`, `EST`), an abbreviation or a POSIX-style offset (`+02`, `UTC-3`),
    /// case aside. 22023 for any other.
    pub fn parse(_name: &str) -> Result<Self, WireError> {
        Ok(Self::utc())
    }

    /// The name as SHOW TimeZone tells it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Seconds east of UTC at this moment (microseconds since 2000-01-01 00:00 UTC).
    pub fn offset_at(&self, _timestamptz: i64) -> i32 {
        let _ = &self.zone;
        0
    }
}
