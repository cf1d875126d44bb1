//! Threads that wait until a processor is free.
//!
//! A thread that wakes takes the processor of whoever has run for a while. For an engine that is no gain: it works off what
//! has come together, and those that it displaces (the runtime's threads, which talk to clients, and the consensus loop) are who
//! would bring it more, or wait with nothing done in vain. It must never know what its thread does.

#![allow(unsafe_code)]

/// Lets the thread that calls this displace nobody. It has as much of the processors' time as others. Where the system
/// knows no such threads (all but Linux), nothing changes.
pub(crate) fn be_patient() {
    #[cfg(target_os = "linux")]
    {
        // SAFETY: zeroes are a valid `sched_param`, and its one field that matters must be 0 here.
        let parameters: libc::sched_param = unsafe { std::mem::zeroed() };
        // SAFETY: the thread is this one, and the parameters live for the call.
        let failed = unsafe {
            libc::pthread_setschedparam(libc::pthread_self(), libc::SCHED_BATCH, &raw const parameters)
        };
        if failed != 0 {
            tracing::debug!(error = failed, "the system lets no thread be patient");
        }
    }
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use super::*;

    /// The calling thread's scheduling policy, as the kernel tells it.
    fn policy() -> libc::c_int {
        let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
        // The 41st field; the second is a name that may have anything in it.
        let after_name = stat.rsplit_once(") ").unwrap().1;
        after_name.split(' ').nth(41 - 3).unwrap().parse().unwrap()
    }

    #[test]
    fn only_who_asks_is_patient() {
        let patient = std::thread::spawn(|| {
            be_patient();
            policy()
        });
        assert_eq!(patient.join().unwrap(), libc::SCHED_BATCH);
        assert_eq!(policy(), libc::SCHED_OTHER);
    }
}
