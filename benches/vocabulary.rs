//! What every row and every request pays: row batches and keyspace ids.

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use proto::{KeyspaceId, RowBatch, RowBatchBuilder, ValueRef};
use std::hint::black_box;

const ROWS: u64 = 1000;

fn batch() -> RowBatch {
    let mut builder = RowBatchBuilder::new(4);
    for i in 0..ROWS as i64 {
        builder.push_row([
            ValueRef::Int(i),
            ValueRef::Int(i % 10),
            ValueRef::Real(i as f64 / 3.0),
            ValueRef::Text("a text of medium length, such as names have"),
        ]);
    }
    builder.finish()
}

fn row_batches(c: &mut Criterion) {
    let mut group = c.benchmark_group("row batch of 1000 x 4");
    group.throughput(Throughput::Elements(ROWS));
    group.bench_function("encode", |b| b.iter(batch));
    let encoded = batch();
    group.bench_function("check", |b| {
        b.iter_batched(
            || encoded.data().clone(),
            |data| RowBatch::decode(4, ROWS as u32, data).expect("it was encoded here"),
            BatchSize::SmallInput,
        )
    });
    group.bench_function("read", |b| {
        b.iter(|| encoded.rows().flatten().filter(|value| black_box(*value) != ValueRef::Null).count())
    });
    group.finish();
}

fn keyspace_ids(c: &mut Criterion) {
    let mut group = c.benchmark_group("keyspace id");
    group.bench_function("hash of an integer", |b| {
        b.iter(|| KeyspaceId::hash([ValueRef::Int(black_box(4711))]))
    });
    let text = "a-customer-key-of-thirty-two-byt";
    group
        .bench_function("hash of a text", |b| b.iter(|| KeyspaceId::hash([ValueRef::Text(black_box(text))])));
    group.bench_function("range of an integer", |b| {
        b.iter(|| KeyspaceId::range([ValueRef::Int(black_box(4711))]))
    });
    group.finish();
}

criterion_group!(benches, row_batches, keyspace_ids);
criterion_main!(benches);
