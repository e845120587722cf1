-- rows_between --
-- A page of the rows: id, version, the version that the remote store confirmed last, and hash. $1 projects, $2 sessions, $3 ids
-- (empty: all), $4 the first id of the page, $5 the last id there can be, $6 how many.
-- The versions are read from the row's JSON, since a table that was made again meanwhile has no such column yet.
SELECT image ->> 'id' AS id, coalesce((image ->> 'sync_version')::integer, 1) AS version,
       coalesce((image ->> 'synced_version')::integer, 0) AS base,
       dionysus_sync.content_hash(image - dionysus_sync.sync_columns()) AS content_hash
FROM (
    SELECT to_jsonb(dionysus_row.*) AS image
    FROM :memories AS dionysus_row
    WHERE (cardinality($1::text[]) = 0 OR dionysus_row.source_project = ANY ($1))
      AND (cardinality($2::text[]) = 0 OR dionysus_row.session_id::text = ANY ($2))
      AND (cardinality($3::uuid[]) = 0 OR dionysus_row.id = ANY ($3))
      AND dionysus_row.id BETWEEN $4::uuid AND $5::uuid
    ORDER BY dionysus_row.id
    LIMIT $6
) AS page

-- rows_between_one_by_one --
-- Parameters as of `rows_between`; a row that cannot be made JSON has an empty hash.
SELECT id::text AS id, coalesce(((made).image ->> 'sync_version')::integer, 1) AS version,
       coalesce(((made).image ->> 'synced_version')::integer, 0) AS base,
       coalesce(dionysus_sync.content_hash((made).image - dionysus_sync.sync_columns()), '') AS content_hash
FROM (
    SELECT dionysus_row.id, dionysus_sync.image_of(dionysus_row.*) AS made
    FROM :memories AS dionysus_row
    WHERE (cardinality($1::text[]) = 0 OR dionysus_row.source_project = ANY ($1))
      AND (cardinality($2::text[]) = 0 OR dionysus_row.session_id::text = ANY ($2))
      AND (cardinality($3::uuid[]) = 0 OR dionysus_row.id = ANY ($3))
      AND dionysus_row.id BETWEEN $4::uuid AND $5::uuid
    ORDER BY dionysus_row.id
    LIMIT $6
) AS page

-- rows_as_captured --
-- $1 ids, $2 hashes of states, $3 their further columns as JSON text: ids of rows that hold all of their states. Each is looked
-- up by its key.
SELECT state.id::text AS id
FROM unnest($1::uuid[], $2::text[], $3::text[]) AS state (id, content_hash, extra) CROSS JOIN LATERAL (
    SELECT to_jsonb(dionysus_row.*) - dionysus_sync.sync_columns() AS image
    FROM :memories AS dionysus_row WHERE dionysus_row.id = state.id LIMIT 1
) AS here
WHERE dionysus_sync.captured_hash(here.image, state.extra) = state.content_hash
