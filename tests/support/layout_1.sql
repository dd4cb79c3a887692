-- A ledger of layout 1 as the batchrun of that time left it: one run that ended with three failures, and one whose process
-- was killed in the middle of a chunk. Made by it; only hosts and times were changed. For SQLite and PostgreSQL.

CREATE TABLE batchrun_chunk (
    run TEXT NOT NULL,
    no INTEGER NOT NULL,
    epoch INTEGER NOT NULL,
    size INTEGER NOT NULL,
    pos INTEGER DEFAULT '0' NOT NULL,
    skipped INTEGER DEFAULT '0' NOT NULL,
    deaths INTEGER DEFAULT '0' NOT NULL,
    first TEXT,
    last TEXT,
    frontier TEXT,
    open BOOLEAN NOT NULL,
    PRIMARY KEY (run, no)
);

CREATE TABLE batchrun_item (
    run TEXT NOT NULL,
    no INTEGER NOT NULL,
    pos INTEGER NOT NULL,
    epoch INTEGER NOT NULL,
    payload TEXT NOT NULL,
    state TEXT NOT NULL,
    attempts INTEGER NOT NULL,
    base INTEGER DEFAULT '0' NOT NULL,
    deaths INTEGER NOT NULL,
    due DOUBLE PRECISION,
    class TEXT NOT NULL,
    sqlstate TEXT,
    message TEXT NOT NULL,
    PRIMARY KEY (run, no, pos)
);

CREATE TABLE batchrun_meta (
    layout INTEGER NOT NULL,
    PRIMARY KEY (layout)
);

CREATE TABLE batchrun_payload (
    run TEXT NOT NULL,
    no INTEGER NOT NULL,
    items TEXT NOT NULL,
    PRIMARY KEY (run, no)
);

CREATE TABLE batchrun_run (
    id TEXT NOT NULL,
    job TEXT NOT NULL,
    name TEXT,
    status TEXT NOT NULL,
    token TEXT NOT NULL,
    epoch INTEGER NOT NULL,
    heartbeat DOUBLE PRECISION NOT NULL,
    owner TEXT NOT NULL,
    next_no INTEGER NOT NULL,
    cursor TEXT,
    bound TEXT,
    fingerprint TEXT NOT NULL,
    sealed BOOLEAN NOT NULL,
    params TEXT NOT NULL,
    options TEXT NOT NULL,
    guarantee TEXT NOT NULL,
    workers INTEGER NOT NULL,
    total BIGINT,
    started DOUBLE PRECISION NOT NULL,
    ended DOUBLE PRECISION,
    elapsed DOUBLE PRECISION NOT NULL,
    note TEXT NOT NULL,
    PRIMARY KEY (id),
    UNIQUE (name)
);

INSERT INTO batchrun_meta (layout) VALUES (1);

INSERT INTO batchrun_run VALUES ('vh2pr0yv86', 'double', NULL, 'failed', '4d0cad2c3cb2db6d', 1, 1700000000.594, 'elsewhere||4711|1', 8, '[60]', '[60]', '{"code": "ea43f0d85908e8cf1f0b5d8064b6f77a", "parameters": "{\"above\": 28}", "query": "SELECT n \nFROM numbers \nWHERE n > 28", "key": "n"}', true, '{"above": 28}', '{"workers": 0, "threads": 1, "transaction": "item", "batched": false, "read_only": false, "retries": 0, "retry_on": [], "timeout": null, "kill_after": 1.0, "grace": 10.0, "max_failures": null, "start_method": null, "limit": null, "idempotent": false, "max_items_per_worker": null, "max_worker_growth": null, "given": {}}', 'exactly-once', 0, 32, 1700000000.542, 1700000000.594, 0.042, '');
INSERT INTO batchrun_run VALUES ('twv79b804p', 'double', NULL, 'running', 'cd35555f6d446564', 1, 1700000001.802, 'elsewhere||4711|1', 7, '[28]', '[60]', '{"code": "ea43f0d85908e8cf1f0b5d8064b6f77a", "parameters": "{\"above\": 0}", "query": "SELECT n \nFROM numbers \nWHERE n > 0", "key": "n"}', false, '{"above": 0}', '{"workers": 0, "threads": 1, "transaction": "item", "batched": false, "read_only": false, "retries": 0, "retry_on": [], "timeout": null, "kill_after": 1.0, "grace": 10.0, "max_failures": null, "start_method": null, "limit": null, "idempotent": false, "max_items_per_worker": null, "max_worker_growth": null, "given": {}}', 'exactly-once', 0, 60, 1700000001.764, NULL, 0.0, '');
INSERT INTO batchrun_chunk VALUES ('vh2pr0yv86', 0, 1, 1, 1, 0, 0, '29', '29', '[29]', false);
INSERT INTO batchrun_chunk VALUES ('vh2pr0yv86', 1, 1, 2, 2, 0, 0, '30', '31', '[31]', false);
INSERT INTO batchrun_chunk VALUES ('vh2pr0yv86', 2, 1, 3, 3, 0, 0, '32', '34', '[34]', false);
INSERT INTO batchrun_chunk VALUES ('vh2pr0yv86', 3, 1, 4, 4, 0, 0, '35', '38', '[38]', false);
INSERT INTO batchrun_chunk VALUES ('vh2pr0yv86', 4, 1, 5, 5, 0, 0, '39', '43', '[43]', false);
INSERT INTO batchrun_chunk VALUES ('vh2pr0yv86', 5, 1, 6, 6, 0, 0, '44', '49', '[49]', false);
INSERT INTO batchrun_chunk VALUES ('vh2pr0yv86', 6, 1, 7, 7, 0, 0, '50', '56', '[56]', false);
INSERT INTO batchrun_chunk VALUES ('vh2pr0yv86', 7, 1, 4, 4, 0, 0, '57', '60', '[60]', false);
INSERT INTO batchrun_chunk VALUES ('twv79b804p', 0, 1, 1, 1, 0, 0, '1', '1', '[1]', true);
INSERT INTO batchrun_chunk VALUES ('twv79b804p', 1, 1, 2, 2, 0, 0, '2', '3', '[3]', true);
INSERT INTO batchrun_chunk VALUES ('twv79b804p', 2, 1, 3, 3, 0, 0, '4', '6', '[6]', true);
INSERT INTO batchrun_chunk VALUES ('twv79b804p', 3, 1, 4, 4, 0, 0, '7', '10', '[10]', true);
INSERT INTO batchrun_chunk VALUES ('twv79b804p', 4, 1, 5, 5, 0, 0, '11', '15', '[15]', true);
INSERT INTO batchrun_chunk VALUES ('twv79b804p', 5, 1, 6, 6, 0, 0, '16', '21', '[21]', true);
INSERT INTO batchrun_chunk VALUES ('twv79b804p', 6, 1, 7, 5, 0, 0, '22', '28', '[28]', true);
INSERT INTO batchrun_payload VALUES ('twv79b804p', 0, '[1]');
INSERT INTO batchrun_payload VALUES ('twv79b804p', 1, '[2,3]');
INSERT INTO batchrun_payload VALUES ('twv79b804p', 2, '[4,5,6]');
INSERT INTO batchrun_payload VALUES ('twv79b804p', 3, '[7,8,9,10]');
INSERT INTO batchrun_payload VALUES ('twv79b804p', 4, '[11,12,13,14,15]');
INSERT INTO batchrun_payload VALUES ('twv79b804p', 5, '[16,17,18,19,20,21]');
INSERT INTO batchrun_payload VALUES ('twv79b804p', 6, '[22,23,24,25,26,27,28]');
INSERT INTO batchrun_item VALUES ('vh2pr0yv86', 2, 1, 1, '[33]', 'failed', 1, 0, 0, NULL, 'ValueError', NULL, '33 is broken');
INSERT INTO batchrun_item VALUES ('vh2pr0yv86', 4, 4, 1, '[43]', 'failed', 1, 0, 0, NULL, 'ValueError', NULL, '43 is broken');
INSERT INTO batchrun_item VALUES ('vh2pr0yv86', 6, 3, 1, '[53]', 'failed', 1, 0, 0, NULL, 'ValueError', NULL, '53 is broken');
INSERT INTO batchrun_item VALUES ('twv79b804p', 1, 1, 1, '[3]', 'failed', 1, 0, 0, NULL, 'ValueError', NULL, '3 is broken');
INSERT INTO batchrun_item VALUES ('twv79b804p', 4, 2, 1, '[13]', 'failed', 1, 0, 0, NULL, 'ValueError', NULL, '13 is broken');
INSERT INTO batchrun_item VALUES ('twv79b804p', 6, 1, 1, '[23]', 'failed', 1, 0, 0, NULL, 'ValueError', NULL, '23 is broken');

CREATE TABLE numbers (n INTEGER PRIMARY KEY);
CREATE TABLE doubled (n INTEGER NOT NULL, double INTEGER NOT NULL);
CREATE TABLE weather (is_broken BOOLEAN NOT NULL, dies_at INTEGER);
INSERT INTO weather VALUES (true, 27);
INSERT INTO numbers WITH RECURSIVE up(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM up WHERE n < 60) SELECT n FROM up;
INSERT INTO doubled SELECT n, 2 * n FROM numbers WHERE n > 28 AND n NOT IN (33, 43, 53);
INSERT INTO doubled SELECT n, 2 * n FROM numbers WHERE n < 27 AND n NOT IN (3, 13, 23);
