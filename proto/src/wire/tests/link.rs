//! What only the transport sends.

use super::*;
use crate::wire::*;

#[test]
fn what_only_the_transport_sends_comes_back() {
    let mut rows = RowBatchBuilder::new(1);
    values().iter().for_each(|value| rows.push(value.as_ref()));
    let whole = Some(rows.finish());
    check_equal(ResponseHead { affected: 4, position: LogIndex(5), waited: Duration::from_nanos(3), whole });
    check_equal(ResponseHead { affected: 0, position: LogIndex(5), waited: Duration::ZERO, whole: None });
    check_equal(Statuses(statuses()));
    check_equal(Report(NodeId(3), statuses(), vec![RouterIncarnation(u64::MAX), RouterIncarnation(2)]));
    check_equal(Allocate(SequenceId(3), 32));
    check_equal(SetSequence(SequenceId(3), i64::MIN));
    let timeout = Duration::from_millis(2500);
    let voters = vec![NodeId(1), NodeId(3)];
    let change = ChangeMembers { group: GroupId(2), voters, rebuild: Some(NodeId(3)), timeout };
    check_equal(ChangeMembers { rebuild: None, ..change.clone() });
    check_equal(change);
    check_equal(TransferLeader(GroupId(2), NodeId(3), timeout));
    check_equal(CheckTables(GroupId(2), timeout));
    check_equal(Transactions(vec![transaction()]));
    check_equal(OneTransaction(None));
    check_equal(OneTransaction(Some(transaction())));
}

#[test]
fn a_state_is_sent_as_what_changed() {
    let (mut encoder, mut decoder) = (StateEncoder::default(), StateDecoder::default());
    let first = state();
    let message = encoder.next(first.clone());
    let first_read = decoder.next(message).unwrap();
    assert_eq!(first_read.topology, first.topology);
    assert_eq!(encoder.next(first.clone()), pb::ClusterState::default());

    let second = ClusterState { leaders: Arc::new(Leaders::default()), ..first };
    let message = encoder.next(second);
    assert!(message.topology.is_none() && message.catalog.is_none());
    let second_read = decoder.next(message).unwrap();
    assert_eq!(second_read.leaders.as_ref(), &Leaders::default());
    assert!(Arc::ptr_eq(&second_read.catalog, &first_read.catalog));

    assert!(StateDecoder::default().next(pb::ClusterState::default()).is_err());
}
