"""The catalog's schema: named steps, only ever appended to."""

from __future__ import annotations

FRESH = ("PRAGMA page_size = 4096", "PRAGMA auto_vacuum = INCREMENTAL")
"""Said before the first table is made; without effect afterwards."""

MIGRATIONS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        "0001_collections_images_vectors",
        (
            # A collection without a name was dropped; its rows are on their way out.
            """
            CREATE TABLE collections (
                id INTEGER PRIMARY KEY AUTOINCREMENT,
                name TEXT UNIQUE,
                created_at TEXT NOT NULL,
                embedding INTEGER REFERENCES embeddings (id)
            )
            """,
            """
            CREATE TABLE embeddings (
                id INTEGER PRIMARY KEY AUTOINCREMENT,
                collection INTEGER NOT NULL REFERENCES collections (id),
                spec TEXT NOT NULL,
                provenance TEXT NOT NULL
            )
            """,
            "CREATE INDEX embeddings_by_collection ON embeddings (collection)",
            """
            CREATE TABLE images (
                seq INTEGER PRIMARY KEY AUTOINCREMENT,
                collection INTEGER NOT NULL REFERENCES collections (id),
                id TEXT NOT NULL,
                sha256 TEXT NOT NULL,
                filename TEXT NOT NULL,
                media_type TEXT NOT NULL,
                width INTEGER NOT NULL,
                height INTEGER NOT NULL,
                bytes INTEGER NOT NULL,
                created_at TEXT NOT NULL,
                updated_at TEXT NOT NULL,
                source TEXT,
                metadata TEXT NOT NULL,
                UNIQUE (collection, id)
            )
            """,
            "CREATE INDEX images_by_collection ON images (collection)",
            "CREATE INDEX images_by_sha256 ON images (sha256)",
            """
            CREATE TABLE vectors (
                embedding INTEGER NOT NULL REFERENCES embeddings (id),
                seq INTEGER NOT NULL REFERENCES images (seq) ON DELETE CASCADE,
                vector BLOB NOT NULL,
                PRIMARY KEY (embedding, seq)
            )
            """,
            "CREATE INDEX vectors_by_seq ON vectors (seq)",
        ),
    ),
    (
        "0002_recipes_and_jobs",
        (
            # How to make the encoder of an embedding set again; NULL where nobody said.
            "ALTER TABLE embeddings ADD COLUMN recipe TEXT",
            """
            CREATE TABLE jobs (
                number INTEGER PRIMARY KEY AUTOINCREMENT,
                id TEXT NOT NULL UNIQUE,
                kind TEXT NOT NULL,
                parameters TEXT NOT NULL,
                state TEXT NOT NULL,
                cancel_requested INTEGER NOT NULL,
                done INTEGER NOT NULL,
                total INTEGER,
                errors INTEGER NOT NULL,
                error_texts TEXT NOT NULL,
                message TEXT NOT NULL,
                created_at TEXT NOT NULL,
                started_at TEXT,
                updated_at TEXT NOT NULL,
                finished_at TEXT
            )
            """,
            "CREATE INDEX jobs_by_state ON jobs (state)",
        ),
    ),
    (
        "0003_field_index_and_counts",
        (
            # A field without a collection is on its way out, with its values.
            """
            CREATE TABLE fields (
                number INTEGER PRIMARY KEY AUTOINCREMENT,
                collection INTEGER REFERENCES collections (id),
                name TEXT NOT NULL,
                reached INTEGER NOT NULL,
                complete INTEGER NOT NULL,
                UNIQUE (collection, name)
            )
            """,
            # What the columns hold: field_spans.py and field_postings.py.
            """
            CREATE TABLE field_values (
                field INTEGER NOT NULL,
                kind INTEGER NOT NULL,
                value NOT NULL,
                base INTEGER NOT NULL,
                seqs BLOB NOT NULL,
                PRIMARY KEY (field, kind, value, base)
            ) WITHOUT ROWID
            """,
            # The index of the fields follows at the end of the transaction, see FieldChanges.
            """
            CREATE TRIGGER fields_follow_insert AFTER INSERT ON images
            WHEN EXISTS (SELECT 1 FROM fields WHERE collection = NEW.collection)
            BEGIN SELECT note_change(NEW.collection, NEW.seq, NULL, NEW.metadata); END
            """,
            """
            CREATE TRIGGER fields_follow_update AFTER UPDATE OF metadata ON images
            WHEN EXISTS (SELECT 1 FROM fields WHERE collection = NEW.collection)
            BEGIN SELECT note_change(NEW.collection, NEW.seq, OLD.metadata, NEW.metadata); END
            """,
            """
            CREATE TRIGGER fields_follow_delete AFTER DELETE ON images
            WHEN EXISTS (SELECT 1 FROM fields WHERE collection = OLD.collection)
            BEGIN SELECT note_change(OLD.collection, OLD.seq, OLD.metadata, NULL); END
            """,
            "ALTER TABLE collections ADD COLUMN images INTEGER NOT NULL DEFAULT 0",
            """
            UPDATE collections SET images =
                (SELECT count(*) FROM images WHERE images.collection = collections.id)
            """,
            """
            CREATE TRIGGER count_follows_insert AFTER INSERT ON images
            BEGIN UPDATE collections SET images = images + 1 WHERE id = NEW.collection; END
            """,
            """
            CREATE TRIGGER count_follows_delete AFTER DELETE ON images
            BEGIN UPDATE collections SET images = images - 1 WHERE id = OLD.collection; END
            """,
        ),
    ),
    (
        "0004_starts_of_jobs",
        ("ALTER TABLE jobs ADD COLUMN starts INTEGER NOT NULL DEFAULT 0",),
    ),
)
