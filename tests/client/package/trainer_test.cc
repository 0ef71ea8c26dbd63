// The installed headers, library and mock, all in one small test.
#include <adamant/client.h>
#include <adamant/error.h>
#include <adamant/mocks/mock_connection.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>

namespace {

TEST(TrainerTest, SeesTheErrorThatTheMockReturns) {
  auto connection = std::make_shared<adamant::mocks::MockConnection>();
  EXPECT_CALL(*connection, GetParameterSet).WillOnce(::testing::Return(absl::NotFoundError("no set mlp")));
  adamant::Client client(connection);

  const absl::Status status = client.OpenStepStream("mlp").status();

  EXPECT_EQ(status, absl::NotFoundError("no set mlp"));
  EXPECT_EQ(adamant::GetErrorDetail(status).reason(), adamant::v1::ERROR_REASON_UNSPECIFIED);
}

TEST(TrainerTest, ConnectsLazily) { EXPECT_TRUE(adamant::Client::Connect("localhost:1").ok()); }

}  // namespace
