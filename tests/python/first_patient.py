"""A patient's first record, by Python's stock gRPC client: the .proto files and certificates are all it has.

    python first_patient.py localhost:7400 CERTIFICATES PROTO

CERTIFICATES is a folder with service-ca.crt, client.crt and client.key; PROTO the folder of the .proto files.
Needs grpcio and grpcio-tools. Prints one line for each thing done.
"""

import os
import pathlib
import secrets
import sys
import tempfile
import time
import uuid

import grpc
from grpc_tools import protoc


def generate(proto):
    """What `python -m grpc_tools.protoc` would write, into a folder that Python then imports from."""
    out = tempfile.mkdtemp()
    files = sorted(str(path.relative_to(proto)) for path in proto.glob("charthold/v1/*.proto"))
    well_known = os.path.join(os.path.dirname(protoc.__file__), "_proto")
    arguments = ["protoc", f"-I{proto}", f"-I{well_known}", f"--python_out={out}", f"--grpc_python_out={out}", *files]
    if protoc.main(arguments) != 0:
        sys.exit("the .proto files do not compile")
    sys.path.insert(0, out)


def connect(endpoint, certificates):
    read = lambda name: (certificates / name).read_bytes()
    credentials = grpc.ssl_channel_credentials(
        root_certificates=read("service-ca.crt"), private_key=read("client.key"), certificate_chain=read("client.crt")
    )
    # A page of records may be larger than the 4 MiB that the library takes by itself.
    return grpc.secure_channel(endpoint, credentials, options=[("grpc.max_receive_message_length", 8 << 20)])


def uuid7():
    """48 bits of milliseconds, then chance, with version and variant in their places."""
    number = time.time_ns() // 1_000_000 << 80 | secrets.randbits(80)
    number = number & ~(0xF << 76) | 7 << 76
    return str(uuid.UUID(int=number & ~(3 << 62) | 2 << 62))


def services(channel):
    """Asks by reflection. The message is small enough to be written by hand: field 7, list_services."""
    ask = channel.stream_stream("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo")
    answer = next(ask(iter([b"\x3a\x01*"]), timeout=30))
    return [name for name in ("Charts", "Cluster", "Tenants") if f"charthold.v1.{name}".encode() in answer]


def main(endpoint, certificates, proto):
    generate(pathlib.Path(proto))
    from charthold.v1 import charts_pb2, charts_pb2_grpc, common_pb2

    with connect(endpoint, pathlib.Path(certificates)) as channel:
        print("services", *services(channel))

        charts = charts_pb2_grpc.ChartsStub(channel)
        context = common_pb2.RequestContext(actor="practitioner/python", purpose_of_use="TREATMENT")
        patient = f"python-{uuid7()}"
        print("patient", patient)
        chart = common_pb2.ChartRef(kind=common_pb2.ChartRef.PATIENT, id=patient)
        record = common_pb2.RecordRef(type="Patient", id=patient)
        body = f'{{"resourceType":"Patient","id":"{patient}","name":[{{"text":"Þórunn"}}]}}'.encode()
        put = charts_pb2.Put(content_type="application/fhir+json", body=body)
        must_not_exist = charts_pb2.Precondition(must_not_exist=True)
        mutation = charts_pb2.Mutation(record=record, precondition=must_not_exist, put=put)
        request = charts_pb2.CommitRequest(context=context, request_id=uuid7(), chart=chart, mutations=[mutation])
        committed = charts.Commit(request, timeout=30)
        print("committed version", *committed.versions)

        again = charts.Commit(request, timeout=30)
        assert again.versions == committed.versions and again.committed_at == committed.committed_at
        print("the same request again changes nothing")

        read = charts.Get(charts_pb2.GetRequest(context=context, chart=chart, record=record), timeout=30)
        assert read.record.body == body and read.record.header.version == 1
        print("read it back as version", read.record.header.version)

        pages = list(charts.ReadChart(charts_pb2.ReadChartRequest(context=context, chart=chart), timeout=30))
        assert pages[-1].complete and [row.body for page in pages for row in page.records] == [body]
        print("read the chart of", sum(len(page.records) for page in pages))

        request.request_id = uuid7()
        try:
            charts.Commit(request, timeout=30)
        except grpc.RpcError as error:
            assert error.code() == grpc.StatusCode.ALREADY_EXISTS, error
            # google.rpc.Status in trailing metadata: where the reason is.
            details = dict(error.trailing_metadata())["grpc-status-details-bin"]
            assert b"RECORD_EXISTS" in details, details
            print("a second first version is refused:", error.details())


if __name__ == "__main__":
    main(*sys.argv[1:])
