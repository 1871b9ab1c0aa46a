//! The service `Charts`.

use std::sync::Arc;

use charthold_proto::v1::charts_server::Charts;
use charthold_proto::v1::{
    BatchGetRequest, BatchGetResponse, CommitRequest, CommitResponse, FindChartsRequest, FindChartsResponse,
    GetRequest, GetResponse, HistoryRequest, HistoryResponse, ListRequest, ListResponse, PipelineRequest,
    ReadChartRequest, ReadChartResponse, ReadDocumentRequest, ReadDocumentResponse, Role, UploadPartRequest,
    UploadPartResponse,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::Gateway;
use super::admission::InnerDoor;
use super::answer::deadline;
use super::pipeline::{Answers, Pipelines};

#[derive(Clone)]
pub struct ChartsService(pub Arc<Gateway>, pub Pipelines);

#[tonic::async_trait]
impl Charts for ChartsService {
    async fn commit(&self, request: Request<CommitRequest>) -> Result<Response<CommitResponse>, Status> {
        let deadline = deadline(&request);
        let caller = self.0.service(request.extensions(), Role::Writer, deadline).await?;
        Ok(Response::new(self.0.commit(&caller, request.into_inner(), deadline).await?))
    }

    async fn get(&self, request: Request<GetRequest>) -> Result<Response<GetResponse>, Status> {
        let deadline = deadline(&request);
        let caller = self.0.service(request.extensions(), Role::Reader, deadline).await?;
        let door = InnerDoor::of(request.extensions())?;
        let (answer, seat) = self.0.get(&caller, request.into_inner(), &door, deadline).await?;
        let mut response = Response::new(answer);
        response.extensions_mut().insert(seat);
        Ok(response)
    }

    async fn batch_get(&self, request: Request<BatchGetRequest>) -> Result<Response<BatchGetResponse>, Status> {
        let deadline = deadline(&request);
        let caller = self.0.service(request.extensions(), Role::Reader, deadline).await?;
        Ok(Response::new(self.0.batch_get(&caller, request.into_inner(), deadline).await?))
    }

    async fn list(&self, request: Request<ListRequest>) -> Result<Response<ListResponse>, Status> {
        let deadline = deadline(&request);
        let caller = self.0.service(request.extensions(), Role::Reader, deadline).await?;
        Ok(Response::new(self.0.list(&caller, request.into_inner(), deadline).await?))
    }

    async fn history(&self, request: Request<HistoryRequest>) -> Result<Response<HistoryResponse>, Status> {
        let deadline = deadline(&request);
        let caller = self.0.service(request.extensions(), Role::Reader, deadline).await?;
        Ok(Response::new(self.0.history(&caller, request.into_inner(), deadline).await?))
    }

    async fn find_charts(&self, request: Request<FindChartsRequest>) -> Result<Response<FindChartsResponse>, Status> {
        let deadline = deadline(&request);
        let caller = self.0.service(request.extensions(), Role::Reader, deadline).await?;
        Ok(Response::new(self.0.find_charts(&caller, request.into_inner(), deadline).await?))
    }

    type ReadChartStream = ReceiverStream<Result<ReadChartResponse, Status>>;

    async fn read_chart(&self, request: Request<ReadChartRequest>) -> Result<Response<Self::ReadChartStream>, Status> {
        let deadline = deadline(&request);
        let caller = self.0.service(request.extensions(), Role::Reader, deadline).await?;
        let pages = self.0.read_chart(&caller, request.into_inner(), deadline).await?;
        Ok(Response::new(ReceiverStream::new(pages)))
    }

    async fn upload_part(&self, request: Request<UploadPartRequest>) -> Result<Response<UploadPartResponse>, Status> {
        let deadline = deadline(&request);
        let caller = self.0.service(request.extensions(), Role::Writer, deadline).await?;
        Ok(Response::new(self.0.upload_part(&caller, request.into_inner(), deadline).await?))
    }

    type ReadDocumentStream = ReceiverStream<Result<ReadDocumentResponse, Status>>;

    async fn read_document(
        &self,
        request: Request<ReadDocumentRequest>,
    ) -> Result<Response<Self::ReadDocumentStream>, Status> {
        let deadline = deadline(&request);
        let caller = self.0.service(request.extensions(), Role::Reader, deadline).await?;
        let chunks = self.0.read_document(&caller, request.into_inner(), deadline).await?;
        Ok(Response::new(ReceiverStream::new(chunks)))
    }

    type PipelineStream = Answers;

    async fn pipeline(
        &self,
        request: Request<Streaming<PipelineRequest>>,
    ) -> Result<Response<Self::PipelineStream>, Status> {
        let deadline = deadline(&request);
        self.0.anybody(request.extensions(), deadline).await?;
        let (_, extensions, requests) = request.into_parts();
        Ok(Response::new(self.1.run(extensions, requests)?))
    }
}
