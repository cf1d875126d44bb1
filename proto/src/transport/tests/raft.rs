//! The Raft stream.

use super::*;

fn message(group: u64, number: u64, bytes: usize) -> RaftMessage {
    let mut body = vec![0; bytes.max(8)];
    body[..8].copy_from_slice(&number.to_le_bytes());
    RaftMessage { group: GroupId(group), body: body.into() }
}

fn number(message: &RaftMessage) -> u64 {
    u64::from_le_bytes(*message.body.first_chunk().unwrap())
}

fn raft_client(to: u64, address: SocketAddr) -> RaftClient {
    RaftClient::with_config(NodeId(1), NodeId(to), address.to_string(), impatient())
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_of_a_group_arrive_in_order_and_whole() {
    let mut node = Node::start().await;
    let client = raft_client(2, node.address);
    let sizes = [8, 100_000, 8, 3_000_000, 70_000, 8];
    for i in 0..600u64 {
        // What belongs to the node and to no group has number 0.
        client.send(vec![message(i % 3, i, if i < 60 { sizes[i as usize % 6] } else { 8 })]);
    }
    let mut last = [None; 3];
    for _ in 0..600 {
        let (from, message) = soon(node.messages.recv()).await.unwrap();
        assert_eq!(from, NodeId(1));
        let number = number(&message);
        assert!(message.body.iter().skip(8).all(|b| *b == 0));
        if number < 60 {
            assert_eq!(message.body.len(), sizes[number as usize % 6]);
        }
        let last = &mut last[message.group.0 as usize];
        assert!(last.is_none_or(|last| last < number), "group {}: {number} after {last:?}", message.group);
        *last = Some(number);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_big_message_holds_up_no_other_group() {
    let mut node = Node::start().await;
    let client = raft_client(2, node.address);
    // All of it waits when the stream opens, so the order depends on the stream alone.
    client.send(vec![message(1, 0, 20_000_000), message(2, 1, 8)]);
    let first = soon(node.messages.recv()).await.unwrap().1;
    assert_eq!((first.group, number(&first)), (GroupId(2), 1));
    assert_eq!(soon(node.messages.recv()).await.unwrap().1.body.len(), 20_000_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn sending_to_nobody_returns_and_sending_again_arrives() {
    let node = Node::start().await;
    let address = node.address;
    node.stop().await;
    let peers = RaftPeers::new(NodeId(1), impatient());
    peers.set(NodeId(2), &address.to_string());
    for i in 0..1000 {
        peers.send(NodeId(2), vec![message(1, i, 1_000_000)]);
        peers.send(NodeId(7), vec![message(1, i, 8)]);
    }
    let mut node = Node::start_at(address).await;
    let arrived = soon(async {
        loop {
            // Raft sends its heartbeats for ever.
            peers.send(NodeId(2), vec![message(1, 5000, 8)]);
            tokio::task::yield_now().await;
            match node.messages.try_recv() {
                Ok((_, message)) if number(&message) == 5000 => break true,
                _ => {}
            }
        }
    });
    assert!(arrived.await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_for_another_node_is_not_delivered() {
    let mut node = Node::start().await;
    let (wrong, right) = (raft_client(3, node.address), raft_client(2, node.address));
    wrong.send(vec![message(1, 1, 8)]);
    right.send(vec![message(1, 2, 8)]);
    assert_eq!(number(&soon(node.messages.recv()).await.unwrap().1), 2);
    drop((wrong, right));
    assert!(node.messages.try_recv().is_err());
}
