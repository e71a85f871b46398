CREATE TABLE server_sessions (
    key VARCHAR(255) COLLATE "C" NOT NULL,
    data BYTEA NOT NULL,
    version BIGINT NOT NULL,
    created_at DOUBLE PRECISION NOT NULL,
    touched_at DOUBLE PRECISION NOT NULL,
    expires_at DOUBLE PRECISION NOT NULL,
    "user" VARCHAR(255) COLLATE "C",
    meta TEXT NOT NULL,
    PRIMARY KEY (key)
)
CREATE INDEX ix_server_sessions_expires_at ON server_sessions (expires_at)
CREATE INDEX ix_server_sessions_user ON server_sessions ("user")
