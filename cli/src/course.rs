//! Courses: what many changes of replicas come to, as commands begin and follow them.
//!
//! In come wishes, each sent under one name however often; out goes how far it is, until it is done. A course is the
//! coordinator's: it goes on when the command ends.

use crate::admin::{Way, is_far};
use crate::failure::Failure;
use proto::services::{ClusterStatus, Course, CoursePlan, CourseWish, JobStatus};
use proto::{RequestId, RouterIncarnation};
use std::time::Duration;

/// How often it's looked how far it is.
const LOOK: Duration = Duration::from_millis(500);

/// Begins a course, or asks what it would do.
pub async fn begin(way: &Way, course: Course, dry_run: bool) -> Result<CoursePlan, Failure> {
    let request = RequestId { router: RouterIncarnation(rand::random()), sequence: 1 };
    let wish = CourseWish { request, course, dry_run };
    way.ask(|coordinator| {
        let wish = wish.clone();
        Box::pin(async move { coordinator.course(wish).await })
    })
    .await
}

/// Tells how far a course is as long as it is under way, and answers with what there is after it.
pub async fn follow(
    course: u64,
    way: &Way,
    mut tell: impl FnMut(&ClusterStatus, &JobStatus) -> Result<(), Failure>,
) -> Result<ClusterStatus, Failure> {
    let goes_on = |message: String| Failure::GoesOn(message, "\"shoal status\" shows how far it is".into());
    let look = || async {
        match way.status().await {
            Err(Failure::Cluster(error)) if is_far(&error) => {
                Err(goes_on(format!("nobody can be asked how far it is: {}", error.message)))
            }
            status => status,
        }
    };
    let watch = async {
        loop {
            let status = look().await?;
            match status.jobs.iter().find(|job| job.id == course) {
                Some(job) => tell(&status, job)?,
                // The rest of this answer may be from a moment before the end.
                None => return look().await,
            }
            tokio::time::sleep(LOOK).await;
        }
    };
    tokio::select! {
        end = watch => end,
        _ = tokio::signal::ctrl_c() => Err(goes_on(format!("job {course} goes on"))),
    }
}
