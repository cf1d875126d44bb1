//! A change of a group's replicas under way: which voters it has yet to have, and how far it has come.
//!
//! A job is written whole into the coordinator's log before anything happens to the group, so that any later leader
//! can take it up where it stands. Its steps are worked off in order; each can be asked for again without harm, for a
//! group that has the voters has no more to do. The messages here are kept on disk: a field's number is for ever.

use proto::wire::Wire;
use proto::{GroupId, NodeId, RequestId, RouterIncarnation, SqlState, WireError};

/// One change of a group's replicas.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ReplicaJob {
    #[prost(uint64, tag = "1")]
    pub(crate) id: u64,
    #[prost(uint64, tag = "2")]
    router: u64,
    #[prost(uint64, tag = "3")]
    sequence: u64,
    #[prost(uint64, tag = "4")]
    group: u64,
    /// What it does, for people.
    #[prost(string, tag = "5")]
    pub(crate) what: String,
    /// The voters that the group is to have, one set after the other. The last one is what it ends with.
    #[prost(message, repeated, tag = "6")]
    steps: Vec<Voters>,
    /// The step that is next.
    #[prost(uint32, tag = "7")]
    pub(crate) step: u32,
    /// The node that gets a replica; 0 for none.
    #[prost(uint64, tag = "8")]
    joining: u64,
    /// The node that is to lead; 0 for a job that changes voters.
    #[prost(uint64, tag = "9")]
    lead: u64,
    /// The voters before it.
    #[prost(uint64, repeated, tag = "10")]
    before: Vec<u64>,
    /// Why it failed. The voters before it are then to be had again.
    #[prost(bytes = "vec", optional, tag = "11")]
    failed_by: Option<Vec<u8>>,
    /// Nobody asked for it: the coordinator saw that it was needed.
    #[prost(bool, tag = "12")]
    pub(crate) automatic: bool,
}

/// The voters of a group.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Voters {
    #[prost(uint64, repeated, tag = "1")]
    nodes: Vec<u64>,
}

/// What a job does to its group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Course {
    /// The group gets these voters, one set after the other.
    Voters {
        /// The sets.
        steps: Vec<Vec<NodeId>>,
        /// The node that gets a new replica.
        joining: Option<NodeId>,
    },
    /// This voter leads it.
    Lead(NodeId),
}

/// What a job has to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// The group must get these voters.
    Voters(Vec<NodeId>),
    /// This voter must lead.
    Lead(NodeId),
    /// The group must get back these voters, then the job has failed.
    Undo(Vec<NodeId>, WireError),
    /// All is done.
    End,
}

impl ReplicaJob {
    /// A job at its beginning.
    pub(crate) fn new(
        id: u64,
        request: RequestId,
        group: GroupId,
        what: String,
        before: &[NodeId],
        course: Course,
    ) -> Self {
        let mut job = ReplicaJob {
            id,
            router: request.router.0,
            sequence: request.sequence,
            group: group.0,
            what,
            before: numbers(before),
            ..ReplicaJob::default()
        };
        match course {
            Course::Voters { steps, joining } => {
                job.steps = steps.iter().map(|nodes| Voters { nodes: numbers(nodes) }).collect();
                job.joining = joining.map_or(0, |node| node.0);
            }
            Course::Lead(node) => job.lead = node.0,
        }
        job
    }

    /// Reads a record.
    pub(crate) fn read(bytes: &[u8]) -> Result<Self, WireError> {
        prost::Message::decode(bytes).map_err(|e: prost::DecodeError| damaged(&e))
    }

    /// The record.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        prost::Message::encode_to_vec(self)
    }

    /// Who asked for it.
    pub(crate) fn request(&self) -> RequestId {
        RequestId { router: RouterIncarnation(self.router), sequence: self.sequence }
    }

    /// Whose replicas it changes.
    pub(crate) fn group(&self) -> GroupId {
        GroupId(self.group)
    }

    /// The node that gets a new replica.
    pub(crate) fn joining(&self) -> Option<NodeId> {
        (self.joining != 0).then_some(NodeId(self.joining))
    }

    /// The voters that the group ends with; `None` if they stay.
    pub(crate) fn after(&self) -> Option<Vec<NodeId>> {
        self.steps.last().map(|voters| nodes(&voters.nodes))
    }

    /// What is next.
    pub(crate) fn next(&self) -> Result<Next, WireError> {
        if let Some(error) = &self.failed_by {
            let error = WireError::decode(error).map_err(|e| damaged(&e))?;
            return Ok(Next::Undo(nodes(&self.before), error));
        }
        Ok(match self.steps.get(self.step as usize) {
            Some(voters) => Next::Voters(nodes(&voters.nodes)),
            None if self.lead != 0 && self.step == 0 => Next::Lead(NodeId(self.lead)),
            None => Next::End,
        })
    }

    /// Moves it past the step that it stands at.
    pub(crate) fn advance(&mut self) {
        self.step += 1;
    }

    /// Notes that its step can't be done.
    pub(crate) fn fail(&mut self, error: &WireError) {
        self.failed_by = Some(error.encode());
    }

    /// Whether a step of it can't be done.
    pub(crate) fn has_failed(&self) -> bool {
        self.failed_by.is_some()
    }

    /// How many steps it has.
    pub(crate) fn length(&self) -> u32 {
        self.steps.len().max(1) as u32
    }
}

fn numbers(nodes: &[NodeId]) -> Vec<u64> {
    nodes.iter().map(|node| node.0).collect()
}

fn nodes(numbers: &[u64]) -> Vec<NodeId> {
    numbers.iter().map(|node| NodeId(*node)).collect()
}

fn damaged(problem: &dyn std::fmt::Display) -> WireError {
    WireError::new(SqlState::DATA_CORRUPTED, format!("the record of a change of replicas: {problem}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(nodes: &[u64]) -> Vec<NodeId> {
        nodes.iter().copied().map(NodeId).collect()
    }

    #[test]
    fn a_job_comes_back_where_it_stood() {
        let request = RequestId { router: RouterIncarnation(7), sequence: 3 };
        let course = Course::Voters { steps: vec![ids(&[1, 2]), ids(&[1, 2, 3])], joining: None };
        let mut job = ReplicaJob::new(9, request, GroupId(4), "rebuild".into(), &ids(&[1, 2, 3]), course);
        assert_eq!(job.next(), Ok(Next::Voters(ids(&[1, 2]))));
        job.advance();
        let mut job = ReplicaJob::read(&job.bytes()).unwrap();
        assert_eq!((job.request(), job.group(), job.joining()), (request, GroupId(4), None));
        assert_eq!(job.next(), Ok(Next::Voters(ids(&[1, 2, 3]))));
        let failed = {
            let mut job = job.clone();
            job.fail(&WireError::internal("x"));
            ReplicaJob::read(&job.bytes()).unwrap()
        };
        assert_eq!(failed.next(), Ok(Next::Undo(ids(&[1, 2, 3]), WireError::internal("x"))));
        job.advance();
        assert_eq!((job.next(), job.after()), (Ok(Next::End), Some(ids(&[1, 2, 3]))));

        let mut lead = ReplicaJob::new(1, request, GroupId(4), "".into(), &[], Course::Lead(NodeId(2)));
        assert_eq!((lead.next(), lead.after()), (Ok(Next::Lead(NodeId(2))), None));
        lead.advance();
        assert_eq!(lead.next(), Ok(Next::End));
    }
}
