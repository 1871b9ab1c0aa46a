//! The first patient: write a chart, read it back, amend a record, read all of it.
//!
//! ```text
//! charthold dev &                                             # a cluster of three sites on this machine
//! cargo run -p charthold-client --example first_patient -- charthold-dev/client.toml
//! ```
#![allow(clippy::print_stdout)]

use charthold_client::{Chart, Client, Error, Mutation, Profile, Put, RecordId, RequestContext};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let profile = std::env::args().nth(1).unwrap_or_else(|| "charthold-dev/client.toml".into());

    // One client for the whole process. Every clone shares its connections and what it knows of the leaders.
    let client = Client::connect(&Profile::load(profile)?)?;

    // Each request says who acts, and why. It ends up, sealed, in the record and in the audit trail.
    let client = client.with_context(RequestContext {
        purpose_of_use: "TREATMENT".into(),
        origin: "first_patient example".into(),
        ..RequestContext::new("practitioner/dr-grey")
    });

    // A chart is all records of one patient. It needs no creating: the first commit does it.
    let patient_id = format!("patient-{}", charthold_client::new_request_id());
    let chart = Chart::patient(&patient_id);
    let patient = RecordId::new("Patient", &patient_id);
    let pressure = RecordId::new("Observation", "blood-pressure-1");

    // One commit: both records, or neither. When it returns, a majority of the sites has them on disk.
    let body = format!(r#"{{"resourceType":"Patient","id":"{patient_id}","birthDate":"1970-01-01"}}"#);
    let committed = client
        .commit(
            &chart,
            vec![
                Mutation::put(patient.clone(), Put::fhir(body)).must_not_exist(),
                Mutation::put(
                    pressure.clone(),
                    Put {
                        clinical_date: "2024-05-13".into(),
                        status: "preliminary".into(),
                        author: "practitioner/dr-grey".into(),
                        ..Put::fhir(r#"{"resourceType":"Observation","status":"preliminary"}"#)
                    },
                )
                .must_not_exist(),
            ],
        )
        .await?;
    println!("committed {} records as request {}", committed.versions.len(), committed.request_id);

    // Reads see every commit that was acknowledged before, from whichever gateway. The version is an ETag ...
    let record = client.get(&chart, &pressure).await?;
    println!("read the {} as version {}", record.header.record.type_, record.version());

    // ... so that a change can insist on what it was based on.
    let amended = Put {
        clinical_date: record.header.clinical_date.clone(),
        status: "final".into(),
        author: record.header.author.clone(),
        ..Put::fhir(r#"{"resourceType":"Observation","status":"final"}"#)
    };
    let amend = Mutation::put(pressure.clone(), amended).if_version(record.version());
    client.commit(&chart, vec![amend.clone()]).await?;

    // Somebody who read the same version comes too late, is told so, and nothing happened.
    match client.commit(&chart, vec![amend]).await {
        Err(Error::VersionMismatch { current: Some(newest), .. }) => {
            println!("too late: the newest is version {newest}");
        }
        other => println!("unexpected: {other:?}"),
    }

    // The history of one record, newest first. Old versions stay readable by their number.
    for header in client.history(&chart, &pressure).await? {
        println!("version {} was {}", header.version, header.status);
    }

    // The whole chart, as of one moment. `None` means complete; a stream that is cut ends with an error.
    let mut records = client.read_chart(&chart).await?;
    while let Some(record) = records.next().await {
        let record = record?;
        println!("{}: {}", record.header.record.type_, String::from_utf8_lossy(&record.body));
    }
    Ok(())
}
