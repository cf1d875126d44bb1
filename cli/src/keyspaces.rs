//! `shoal keyspace ..`: keyspaces are made, and changed.
//!
//! In come the admin's wishes, out go requests to the coordinator, each under one name however often it is sent. What takes long goes on
//! when the command ends.

use crate::admin::ask_leader;
use crate::arguments::{Admin, Keyspace, OnOff, ShardingArgument};
use crate::drain;
use crate::failure::Failure;
use crate::progress::print;
use crate::units::Size;
use proto::services::{AutoChange, AutoWish, CreateKeyspace};
use proto::topology::{AutoSplit, Sharding};
use proto::{RequestId, RouterIncarnation};

/// Runs the command.
pub async fn run(command: Keyspace) -> Result<(), Failure> {
    match command {
        Keyspace::Create { name, sharding, shards, replicas, admin } => {
            create(name, sharding, shards, replicas, admin).await
        }
        Keyspace::Alter { name, replicas, auto, auto_size, auto_shards, admin } => {
            if let Some(auto) = auto {
                set_auto(&name, auto, auto_size, auto_shards, &admin).await?;
            }
            match replicas {
                Some(replicas) => drain::alter(name, replicas, admin).await,
                None => Ok(()),
            }
        }
    }
}

fn name() -> RequestId {
    RequestId { router: RouterIncarnation(rand::random()), sequence: 1 }
}

async fn create(
    keyspace: String,
    sharding: ShardingArgument,
    shards: u32,
    replicas: Option<u32>,
    admin: Admin,
) -> Result<(), Failure> {
    let sharding = match sharding {
        ShardingArgument::Hash => Sharding::Hash,
        ShardingArgument::Range => Sharding::Range,
        ShardingArgument::Single => Sharding::Single,
    };
    let request = CreateKeyspace { request: name(), name: keyspace.clone(), sharding, shards, replicas };
    ask_leader(&admin, |coordinator| {
        let request = request.clone();
        Box::pin(async move { coordinator.create_keyspace(request).await })
    })
    .await?;
    print(&format!("keyspace {keyspace} created"))
}

async fn set_auto(
    keyspace: &str,
    auto: OnOff,
    size: Option<Size>,
    shards: Option<u32>,
    admin: &Admin,
) -> Result<(), Failure> {
    let change = AutoChange { size: size.map(|size| size.0), shards };
    let auto = match auto {
        OnOff::On => Some(change),
        OnOff::Off if change == (AutoChange { size: None, shards: None }) => None,
        OnOff::Off => {
            let message = "--auto off takes neither --auto-size nor --auto-shards";
            return Err(Failure::Arguments(message.to_owned()));
        }
    };
    let wish = AutoWish { request: name(), keyspace: keyspace.to_owned(), auto };
    let set = ask_leader(admin, |coordinator| {
        let wish = wish.clone();
        Box::pin(async move { coordinator.set_auto(wish).await })
    })
    .await?;
    print(&match set {
        Some(auto) => format!("{keyspace} splits by itself what is {}", bounds(&auto)),
        None => format!("{keyspace} splits nothing by itself"),
    })
}

/// What a keyspace splits by itself, for people.
pub fn bounds(auto: &AutoSplit) -> String {
    format!("bigger than {}, up to {} shards", Size(auto.size), auto.shards)
}
