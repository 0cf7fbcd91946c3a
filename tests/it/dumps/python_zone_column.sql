-- What SQLAlchemy's create_all makes of the models of version 2.0.0 in Python, in the shape with
-- "user".zone_id, and data.
CREATE TABLE working_zone (
    zone_id VARCHAR NOT NULL,
    zone_name VARCHAR NOT NULL,
    x1 FLOAT NOT NULL,
    y1 FLOAT NOT NULL,
    x2 FLOAT NOT NULL,
    y2 FLOAT NOT NULL,
    x3 FLOAT NOT NULL,
    y3 FLOAT NOT NULL,
    x4 FLOAT NOT NULL,
    y4 FLOAT NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now(),
    updated_at TIMESTAMP WITH TIME ZONE,
    PRIMARY KEY (zone_id)
);
CREATE INDEX ix_working_zone_zone_id ON working_zone (zone_id);
CREATE TABLE "user" (
    id SERIAL NOT NULL,
    global_id INTEGER NOT NULL,
    name VARCHAR NOT NULL,
    zone_id VARCHAR,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now(),
    updated_at TIMESTAMP WITH TIME ZONE,
    PRIMARY KEY (id),
    UNIQUE (global_id),
    FOREIGN KEY (zone_id) REFERENCES working_zone (zone_id)
);
CREATE INDEX ix_user_id ON "user" (id);

INSERT INTO working_zone (zone_id, zone_name, x1, y1, x2, y2, x3, y3, x4, y4, created_at, updated_at) VALUES
    ('dock', 'Dock 🚢', 0, 0, 10.5, 0, 10.5, 7.25, 0, 7.25, '2025-01-01 00:00:00.000001+00', NULL),
    ('entrance', 'Entrance', 0, 0, 1, 0, 1, 1, 0, 1, '2025-01-01 00:00:00+00', '2025-01-05 00:00:00+00'),
    ('вход №2', 'Вход', -1e-9, 0, 1e300, 0, 1, 1, 0, 1, NULL, NULL);

INSERT INTO "user" (id, global_id, name, zone_id, created_at, updated_at) VALUES
    (1, 1001, 'Ада 🧑‍🚀', 'entrance', '2025-01-02 03:04:05.123456+00', '2025-02-02 03:04:05.5+03'),
    (2, 1002, '', 'вход №2', '2025-01-02 03:04:06+00', NULL),
    (3, 1003, 'tab	and ''quote''', NULL, NULL, NULL),
    (17, -5, 'negative', NULL, '1969-12-31 23:59:59.999999+00', NULL),
    (18, 7, 'Bob', 'dock', '2025-03-01 00:00:00+00', NULL),
    (40, 2147483647, 'the last int32', 'entrance', '2025-03-01 00:00:00.000001+00', NULL);
SELECT setval('user_id_seq', 41, true);
