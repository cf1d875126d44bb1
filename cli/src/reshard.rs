//! `shoal reshard ..`: wishes for reshards, and what is told of them while they go on.
//!
//! In come the admin's wishes, out go requests to the coordinator, each under one name however often it is sent. The reshard
//! is the coordinator's: it goes on when the command ends, and everything here can be asked for again.

mod bounds;
mod median;
mod meter;
mod relocate;
mod show;

use crate::admin::{Way, is_far};
use crate::arguments::{One, Reshard, ReshardOptions, Show, Wait};
use crate::failure::Failure;
use crate::progress::{Display, print};
use meter::{Meter, Speed};
use proto::services::{
    self, ReshardCommand, ReshardCourse, ReshardPhase, ReshardPlan, ReshardStatus, ReshardWish, SplitAt,
};
use proto::topology::Sharding;
use proto::{NodeId, RequestId, ReshardId, RouterIncarnation, SqlState, WireError};
use std::io::{BufRead, IsTerminal, Write};
use std::time::{Duration, Instant};

/// How often it is looked how far a reshard is.
const LOOK: Duration = Duration::from_millis(250);

/// Runs the command.
pub async fn run(command: Reshard) -> Result<(), Failure> {
    match command {
        Reshard::Split { shard, into, at, median, options } => {
            let way = Way::find(&options.show.admin).await?.0;
            let at = match into {
                Some(parts) => SplitAt::Evenly(parts),
                None => place(&way, &shard, &at, median, options.show.json).await?,
            };
            begin(way, ReshardCourse::Split { shard, at }, options).await
        }
        Reshard::Merge { shards, options } => {
            let way = Way::find(&options.show.admin).await?.0;
            begin(way, ReshardCourse::Merge { shards }, options).await
        }
        Reshard::Move(options) => relocate::run(options).await,
        Reshard::Status { id, show } => status(id.map(ReshardId), &show).await,
        Reshard::Switch(one) => act(one, ReshardCommand::Switch).await,
        Reshard::Reverse(one) => act(one, ReshardCommand::Reverse).await,
        Reshard::Complete(one) => act(one, ReshardCommand::Complete).await,
        Reshard::Cancel(one) => act(one, ReshardCommand::Cancel).await,
        Reshard::Pause(one) => act(one, ReshardCommand::Pause).await,
        Reshard::Resume(one) => act(one, ReshardCommand::Resume).await,
        Reshard::Verify(one) => act(one, ReshardCommand::Verify).await,
    }
}

/// Where a shard is cut: at keys, or by its rows.
async fn place(way: &Way, shard: &str, at: &[String], median: bool, json: bool) -> Result<SplitAt, Failure> {
    let status = way.status().await?;
    if bounds::find(&status.state, shard)?.0.sharding == Sharding::Single {
        // It's refused wherever it would be.
        return Ok(SplitAt::Evenly(2));
    }
    if median {
        return Ok(SplitAt::Bounds(vec![median::median(way, shard, json).await?]));
    }
    Ok(SplitAt::Bounds(bounds::bounds(&status.state, shard, at)?))
}

/// Has a reshard begin, and follows it.
async fn begin(way: Way, course: ReshardCourse, options: ReshardOptions) -> Result<(), Failure> {
    let ReshardOptions { yes, dry_run, rate, drain, keep, no_verify, builder, on, wait, show } = options;
    let wish = ReshardWish {
        request: RequestId { router: RouterIncarnation(rand::random()), sequence: 1 },
        course,
        options: services::ReshardOptions {
            auto: yes,
            verify: !no_verify,
            rate: rate.map_or(0, |rate| rate.0),
            drain: drain.0,
            keep: keep.0.map(|keep| keep.0),
            builder: builder.map(NodeId),
            nodes: on.into_iter().map(NodeId).collect(),
        },
        dry_run,
    };
    let plan = way
        .ask(|coordinator| {
            let wish = wish.clone();
            Box::pin(async move { coordinator.reshard(wish).await })
        })
        .await?;
    print(&if show.json { show::json(&show::PlanLine::new(&plan)) } else { show::plan(&plan) })?;
    match plan {
        ReshardPlan { reshard: Some(id), .. } if wait == Wait::Yes => {
            let status = follow(id, &way, &show).await?;
            ask_to_switch(status, &way, &show).await
        }
        _ => Ok(()),
    }
}

/// Tells a reshard something, and follows it if that takes time.
async fn act(one: One, command: ReshardCommand) -> Result<(), Failure> {
    let (id, show) = (ReshardId(one.id), one.show);
    let (way, _) = Way::find(&show.admin).await?;
    tell(id, command, &way).await?;
    if matches!(command, ReshardCommand::Pause | ReshardCommand::Resume) {
        return status(Some(id), &show).await;
    }
    let status = follow(id, &way, &show).await?;
    ended(command, &status, &show)
}

async fn tell(id: ReshardId, command: ReshardCommand, way: &Way) -> Result<(), Failure> {
    let request = RequestId { router: RouterIncarnation(rand::random()), sequence: 1 };
    way.ask(|coordinator| Box::pin(async move { coordinator.command(request, id, command).await })).await
}

/// Shows reshards as they are now.
async fn status(id: Option<ReshardId>, show: &Show) -> Result<(), Failure> {
    let (way, _) = Way::find(&show.admin).await?;
    let all = match id {
        Some(id) => vec![look(id, &way).await?],
        None => reshards(&way).await?,
    };
    if !show.json {
        return print(&show::table(&all));
    }
    all.iter().try_for_each(|status| print(&show::json(&show::Line::new(status, &Speed::default()))))
}

async fn reshards(way: &Way) -> Result<Vec<ReshardStatus>, Failure> {
    way.ask(|coordinator| Box::pin(async move { coordinator.reshards().await })).await
}

async fn look(id: ReshardId, way: &Way) -> Result<ReshardStatus, Failure> {
    let all = reshards(way).await?;
    all.into_iter().find(|status| status.id == id).ok_or_else(|| {
        let message = format!("there is no reshard {id}");
        let error = WireError::new(SqlState::UNDEFINED_OBJECT, message);
        Failure::Cluster(error.with_hint("\"shoal reshard status\" lists those of late."))
    })
}

/// Whether it goes no further unless somebody does something.
fn rests(status: &ReshardStatus) -> bool {
    use ReshardPhase::*;
    match status.phase {
        Ended => true,
        Switching | Undoing => false,
        _ if status.paused.is_some() => true,
        Ready | Switched => !status.wanted,
        _ => false,
    }
}

/// Shows how far a reshard is, until it rests.
async fn follow(id: ReshardId, way: &Way, show: &Show) -> Result<ReshardStatus, Failure> {
    let mut display = Display::new(show.json);
    let end = tokio::select! {
        end = watch(id, way, show, &mut display) => end,
        _ = tokio::signal::ctrl_c() => Err(goes_on(format!("reshard {id} goes on"), id)),
    };
    display.clear();
    end
}

fn goes_on(message: String, id: ReshardId) -> Failure {
    Failure::GoesOn(message, format!("\"shoal reshard status {id}\" shows how far it is"))
}

async fn watch(
    id: ReshardId,
    way: &Way,
    show: &Show,
    display: &mut Display,
) -> Result<ReshardStatus, Failure> {
    let (begun, mut meter) = (Instant::now(), Meter::default());
    loop {
        let status = match look(id, way).await {
            Err(Failure::Cluster(error)) if is_far(&error) => {
                return Err(goes_on(format!("nobody can be asked how far it is: {}", error.message), id));
            }
            status => status?,
        };
        let speed = meter.hear(begun.elapsed(), &status);
        let rests = rests(&status);
        let text = if show.json {
            show::json(&show::Line::new(&status, &speed))
        } else {
            show::line(&status, &speed)
        };
        display.show(status.phase.name(), text, begun.elapsed(), rests)?;
        if rests {
            return Ok(status);
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// What is to become of a reshard that rests, if it is ready and somebody is there to say so.
async fn ask_to_switch(status: ReshardStatus, way: &Way, show: &Show) -> Result<(), Failure> {
    let id = status.id;
    if status.phase != ReshardPhase::Ready || status.switches > 0 || status.paused.is_some() {
        return ended(ReshardCommand::Switch, &status, show);
    }
    let asks = !show.json && std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    if !asks || !says_yes().await? {
        let message = format!("reshard {id} is ready, and waits to be told to switch");
        let hint = format!("\"shoal reshard switch {id}\" does, \"shoal reshard cancel {id}\" ends it");
        return Err(Failure::Undecided(message, hint));
    }
    tell(id, ReshardCommand::Switch, way).await?;
    let status = follow(id, way, show).await?;
    ended(ReshardCommand::Switch, &status, show)
}

async fn says_yes() -> Result<bool, Failure> {
    let mut out = std::io::stdout();
    write!(out, "ready. Switch now? [y/N] ").and_then(|()| out.flush()).map_err(Failure::Print)?;
    let answer = tokio::task::spawn_blocking(|| {
        let mut line = String::new();
        std::io::stdin().lock().read_line(&mut line).map(|_| line)
    });
    let line = match answer.await {
        Ok(line) => line.map_err(Failure::Print)?,
        Err(_) => String::new(),
    };
    Ok(matches!(line.trim().to_lowercase().as_str(), "y" | "yes"))
}

/// Whether a reshard that rests has done what it was told, and what to do if it hasn't.
fn ended(command: ReshardCommand, status: &ReshardStatus, show: &Show) -> Result<(), Failure> {
    let id = status.id;
    if let Some(why) = &status.paused {
        let message = format!("reshard {id} rests: {why}");
        let hint =
            format!("\"shoal reshard resume {id}\" has it go on, \"shoal reshard status {id}\" shows it");
        return Err(Failure::Undecided(message, hint));
    }
    let old = status.old.join(", ");
    let (are, them) = if status.old.len() == 1 { ("is", "it") } else { ("are", "them") };
    let told = match (command, status.phase) {
        (ReshardCommand::Switch, ReshardPhase::Switched) => {
            let end = match status.completes_in {
                Some(left) => format!(
                    "it is completed in {} (\"shoal reshard complete {id}\" does it now)",
                    show::rounded(left)
                ),
                None => format!("\"shoal reshard complete {id}\" drops {them}"),
            };
            let way = format!("{old} {are} still fed: \"shoal reshard reverse {id}\" goes back; {end}");
            Some(format!("{}\n{way}", show::switch(status)))
        }
        (ReshardCommand::Reverse, ReshardPhase::Ready) => {
            let way = format!(
                "\"shoal reshard switch {id}\" switches again, \"shoal reshard cancel {id}\" ends it"
            );
            Some(format!("{}\n{way}", show::switch(status)))
        }
        (ReshardCommand::Complete, ReshardPhase::Ended) if status.failed.is_none() => {
            Some(format!("{old} {are} gone for good"))
        }
        (ReshardCommand::Switch, ReshardPhase::Ended) if status.failed.is_none() => {
            Some(format!("it {}; {old} {are} gone for good", show::switch(status)))
        }
        (ReshardCommand::Cancel, ReshardPhase::Ended) => Some("nothing is left of it".to_owned()),
        (ReshardCommand::Verify, ReshardPhase::Ready | ReshardPhase::Switched) => {
            Some("old and new have the same rows".to_owned())
        }
        _ => None,
    };
    match told {
        Some(_) if show.json => Ok(()),
        Some(text) => print(&text),
        None => {
            let why = status.failed.as_deref().unwrap_or(&status.message);
            let message = format!("reshard {id} is {}: {why}", status.phase);
            let error = WireError::new(SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE, message);
            Err(Failure::Cluster(error.with_hint(format!("\"shoal reshard status {id}\" shows it."))))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arguments::{Arguments, Command};
    use clap::Parser;
    use proto::Attempt;
    use proto::services::Progress;

    pub(super) fn status(phase: ReshardPhase) -> ReshardStatus {
        ReshardStatus {
            id: ReshardId(7),
            what: "split main/-80 into main/-40, main/40-80".into(),
            keyspace: "main".into(),
            phase,
            attempt: Attempt(0),
            old: vec!["main/-80".into()],
            new: vec!["main/-40".into(), "main/40-80".into()],
            wanted: false,
            bytes: None,
            rows: None,
            lag: None,
            paused: None,
            failed: None,
            message: String::new(),
            switches: 0,
            ended: 0,
            pause: None,
            completes_in: None,
            since: Duration::from_secs(240),
        }
    }

    fn parse(line: &str) -> Result<Reshard, String> {
        let words = ["shoal", "reshard"].into_iter().chain(line.split(' ')).chain(["--host", "a:1"]);
        match Arguments::try_parse_from(words).map_err(|error| error.to_string())?.command {
            Command::Reshard(command) => Ok(command),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_split_says_where() {
        let Reshard::Split { shard, into, at, median, options } = parse("split main/-80 --into 2").unwrap()
        else {
            panic!()
        };
        assert!(!median);
        assert_eq!((shard.as_str(), into, at.len(), options.yes), ("main/-80", Some(2), 0, false));
        assert_eq!((options.drain.0.as_secs(), options.keep.0.unwrap().0.as_secs()), (2, 3600));
        let Reshard::Split { at, options, .. } =
            parse("split main/- --at 40 --at c0ff --yes --keep always --on 1,2").unwrap()
        else {
            panic!()
        };
        assert_eq!(at, ["40", "c0ff"]);
        let Reshard::Split { at, .. } = parse("split log/- --at -5").unwrap() else { panic!() };
        assert_eq!(at, ["-5"]);
        let Reshard::Split { median, .. } = parse("split log/- --median").unwrap() else { panic!() };
        assert!(median);
        assert_eq!((options.yes, options.keep.0, options.on), (true, None, vec![1, 2]));
        for wrong in [
            "split main/-80",
            "split main/-80 --into 1",
            "split main/-80 --into 17",
            "split main/-80 --into 2 --at 40",
            "split main/-80 --at 40 --median",
            "split main/-80 --into 2 --keep never",
            "split main/-80 --into 2 --rate 5",
            "split main/-80 --into 2 --on 0",
            "merge main/-80",
            "switch",
            "switch x",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_line_says_how_far_it_is() {
        let none = Speed::default();
        let copying = ReshardStatus {
            bytes: Some(Progress { done: 55_574_528, total: 111_149_056 }),
            rows: Some(500_000),
            ..status(ReshardPhase::Copying)
        };
        let speed =
            Speed { rate: Some(42_991_616), remaining: Some(Duration::from_millis(1_300)), gains: None };
        let expected = "copying       50 %  500,000 rows  53.00 MiB  41.00 MiB/s  about 2 seconds left";
        assert_eq!(show::line(&copying, &speed), expected);
        let behind =
            ReshardStatus { lag: Some(Duration::from_millis(2_100)), ..status(ReshardPhase::CatchingUp) };
        let speed = Speed { gains: Some(false), ..none };
        assert_eq!(show::line(&behind, &speed), "catching-up  lag 2.1 s  not faster than the writers");
        let paused = ReshardStatus { paused: Some("the disk of node 2 is full".into()), ..copying };
        assert!(show::line(&paused, &none).starts_with("copying      rests: the disk of node 2 is full  "));
        let equal = "equal at main/-80.1:48113";
        let verifying =
            ReshardStatus { rows: Some(7_000), message: equal.into(), ..status(ReshardPhase::Verifying) };
        assert_eq!(show::line(&verifying, &none), "verifying    7,000 rows  equal at main/-80.1:48113");
        let ended = ReshardStatus { failed: Some("it was cancelled".into()), ..status(ReshardPhase::Ended) };
        assert_eq!(show::line(&ended, &none), "ended        it was cancelled");
        assert_eq!(show::line(&status(ReshardPhase::Ended), &none), "ended        completed");
        assert_eq!(show::table(&[]), "no reshards");
        assert!(show::table(&[status(ReshardPhase::Copying)]).contains(" 4 minutes "));
        assert!(!show::table(&[ended]).contains("minutes"), "nobody has counted");
    }

    #[test]
    fn it_is_followed_until_somebody_must_decide() {
        use ReshardPhase::*;
        let wanted = |phase| ReshardStatus { wanted: true, ..status(phase) };
        let paused = |phase| ReshardStatus { paused: Some("so".into()), ..status(phase) };
        for goes_on in [Planned, Copying, CatchingUp, Verifying, Switching, Undoing, Completing, Cancelling] {
            assert!(!rests(&status(goes_on)), "{goes_on}");
        }
        assert!(rests(&status(Ready)) && rests(&status(Switched)) && rests(&status(Ended)));
        assert!(!rests(&wanted(Ready)) && !rests(&wanted(Switched)));
        assert!(rests(&paused(Copying)) && rests(&paused(Ready)));
        assert!(!rests(&paused(Switching)), "an attempt comes to its end first");
    }

    #[test]
    fn what_was_told_is_done_or_it_says_what_to_do() {
        use ReshardPhase::*;
        let Reshard::Switch(One { show, .. }) = parse("switch 7").unwrap() else { panic!() };
        let end = |command, status: &ReshardStatus| ended(command, status, &show);
        assert!(end(ReshardCommand::Switch, &status(Switched)).is_ok());
        assert!(end(ReshardCommand::Reverse, &status(Ready)).is_ok());
        assert!(end(ReshardCommand::Cancel, &status(Ended)).is_ok());
        let given_up = ReshardStatus { message: "attempt 5 was given up".into(), ..status(Ready) };
        let failure = end(ReshardCommand::Switch, &given_up).unwrap_err();
        assert_eq!(
            failure.to_string().split(" (hint").next(),
            Some("reshard 7 is ready: attempt 5 was given up")
        );
        assert_eq!(failure.exit_code(), 1);
        let paused = ReshardStatus { paused: Some("rows differ".into()), ..status(Verifying) };
        assert_eq!(end(ReshardCommand::Verify, &paused).unwrap_err().exit_code(), 3);
        let cancelled = ReshardStatus { failed: Some("it was cancelled".into()), ..status(Ended) };
        assert_eq!(end(ReshardCommand::Complete, &cancelled).unwrap_err().exit_code(), 1);
    }
}
