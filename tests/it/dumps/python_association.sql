-- What pg_dump writes of a database of version 2.0.0 in Python, in the shape with the association table.
SET statement_timeout = 0;
SET client_encoding = 'UTF8';
SET standard_conforming_strings = on;

CREATE TABLE public."user" (
    id integer NOT NULL,
    global_id integer NOT NULL,
    name character varying(100) NOT NULL,
    created_at timestamp with time zone DEFAULT now(),
    updated_at timestamp with time zone
);
CREATE SEQUENCE public.user_id_seq AS integer START WITH 1 INCREMENT BY 1 NO MINVALUE NO MAXVALUE CACHE 1;
ALTER SEQUENCE public.user_id_seq OWNED BY public."user".id;
ALTER TABLE ONLY public."user" ALTER COLUMN id SET DEFAULT nextval('public.user_id_seq'::regclass);

CREATE TABLE public.working_zone (
    zone_id character varying(50) NOT NULL,
    zone_name character varying(100) NOT NULL,
    x1 double precision NOT NULL,
    y1 double precision NOT NULL,
    x2 double precision NOT NULL,
    y2 double precision NOT NULL,
    x3 double precision NOT NULL,
    y3 double precision NOT NULL,
    x4 double precision NOT NULL,
    y4 double precision NOT NULL,
    created_at timestamp with time zone DEFAULT now(),
    updated_at timestamp with time zone
);

CREATE TABLE public.user_zone_association (
    user_id integer NOT NULL,
    zone_id character varying(50) NOT NULL,
    created_at timestamp with time zone DEFAULT now()
);

INSERT INTO public."user" (id, global_id, name, created_at, updated_at) VALUES
    (1, 1001, 'Ада 🧑‍🚀', '2025-01-02 03:04:05.123456+00', '2025-02-02 03:04:05.5+03'),
    (2, 1002, '', '2025-01-02 03:04:06+00', NULL),
    (3, 1003, 'tab	and ''quote''', NULL, NULL),
    (17, -5, 'negative', '1969-12-31 23:59:59.999999+00', NULL),
    (18, 7, 'Bob', '2025-03-01 00:00:00+00', NULL),
    (40, 2147483647, 'the last int32', '2025-03-01 00:00:00.000001+00', NULL);

INSERT INTO public.working_zone (zone_id, zone_name, x1, y1, x2, y2, x3, y3, x4, y4, created_at, updated_at) VALUES
    ('dock', 'Dock 🚢', 0, 0, 10.5, 0, 10.5, 7.25, 0, 7.25, '2025-01-01 00:00:00.000001+00', NULL),
    ('entrance', 'Entrance', 0, 0, 1, 0, 1, 1, 0, 1, '2025-01-01 00:00:00+00', '2025-01-05 00:00:00+00'),
    ('вход №2', 'Вход', -1e-9, 0, 1e300, 0, 1, 1, 0, 1, NULL, NULL),
    ('empty', 'all corners in one place', 0, 0, 0, 0, 0, 0, 0, 0, '2025-01-01 00:00:00+00', NULL);

INSERT INTO public.user_zone_association (user_id, zone_id, created_at) VALUES
    (1, 'entrance', '2025-01-03 10:00:00+00'),
    (1, 'dock', '2025-01-03 08:30:00.654321+00'),
    (1, 'вход №2', '2025-01-03 08:00:00+00'),
    (2, 'вход №2', '2025-01-04 00:00:00+00'),
    (2, 'entrance', '2025-01-03 00:00:00+00'),
    (18, 'dock', '2025-01-04 00:00:00+00'),
    (40, 'entrance', NULL);

SELECT pg_catalog.setval('public.user_id_seq', 41, true);

ALTER TABLE ONLY public."user" ADD CONSTRAINT user_pkey PRIMARY KEY (id);
ALTER TABLE ONLY public.working_zone ADD CONSTRAINT working_zone_pkey PRIMARY KEY (zone_id);
ALTER TABLE ONLY public.user_zone_association ADD CONSTRAINT user_zone_association_pkey PRIMARY KEY (user_id, zone_id);
CREATE UNIQUE INDEX ix_user_global_id ON public."user" USING btree (global_id);
CREATE INDEX ix_user_id ON public."user" USING btree (id);
CREATE INDEX ix_working_zone_zone_id ON public.working_zone USING btree (zone_id);
ALTER TABLE ONLY public.user_zone_association
    ADD CONSTRAINT user_zone_association_user_id_fkey FOREIGN KEY (user_id) REFERENCES public."user"(id) ON DELETE CASCADE;
ALTER TABLE ONLY public.user_zone_association
    ADD CONSTRAINT user_zone_association_zone_id_fkey FOREIGN KEY (zone_id) REFERENCES public.working_zone(zone_id) ON DELETE CASCADE;
