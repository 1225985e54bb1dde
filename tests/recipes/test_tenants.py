"""Tenants on PostgreSQL: what each sees, and what the wrong ways show to others."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from flask import Flask, g
from sqlalchemy import create_engine, func, make_url, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.schema import CreateSchema, DropSchema

from flask_sqlalchemy_session import FlaskScopedSession, current_session
from flask_sqlalchemy_session.testing import isolate
from tests.support import Base, User

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType

    from sqlalchemy import Engine


@pytest.fixture
def admin(postgresql_url: str) -> Iterator[Engine]:
    """An engine of a superuser, whom no policy holds."""
    engine = create_engine(postgresql_url, isolation_level="AUTOCOMMIT")
    yield engine
    engine.dispose()


class TestRowLevelSecurity:
    @pytest.fixture
    def page(
        self, recipe: Callable[[str], ModuleType], admin: Engine
    ) -> Iterator[ModuleType]:
        """The page's program on one connection, as the user who owns the table."""
        module = recipe("CREATE POLICY of_tenant")
        module.Base.metadata.create_all(admin)
        with admin.connect() as connection:
            for statement in module.policies.strip().split(";"):
                connection.execute(text(statement))
            connection.execute(text("CREATE ROLE shop LOGIN PASSWORD 'shop'"))
            connection.execute(text("ALTER TABLE orders OWNER TO shop"))
        url = make_url(admin.url).set(username="shop", password="shop")  # noqa: S106  # of a test
        engine = create_engine(url, pool_size=1, max_overflow=0)
        module.maker.configure(bind=engine)
        yield module
        engine.dispose()
        module.Base.metadata.drop_all(admin)
        with admin.connect() as connection:
            connection.execute(text("DROP OWNED BY shop"))
            connection.execute(text("DROP ROLE shop"))

    def add(self, page: ModuleType, tenant: str, item: str) -> None:
        with page.app.app_context():
            g.tenant = tenant
            current_session.add(page.Order(item=item))
            current_session.commit()

    def items(self, page: ModuleType, tenant: str) -> list[str]:
        with page.app.app_context():
            g.tenant = tenant
            return list(current_session.scalars(select(page.Order.item)))

    def test_each_tenant_sees_its_rows_whatever_the_query_says(
        self, page: ModuleType
    ) -> None:
        self.add(page, "north", "tea")
        self.add(page, "south", "rum")
        assert self.items(page, "north") == ["tea"]
        assert self.items(page, "south") == ["rum"]
        assert self.items(page, "east") == []

    def test_every_transaction_of_a_context_has_the_tenant(
        self, page: ModuleType
    ) -> None:
        self.add(page, "north", "tea")
        with page.app.app_context():
            g.tenant = "north"
            for _ in range(3):
                assert list(current_session.scalars(select(page.Order.item))) == ["tea"]
                with current_session.begin_nested():
                    assert len(current_session.scalars(select(page.Order)).all()) == 1
                current_session.commit()

    def test_a_row_of_another_tenant_can_not_be_written(self, page: ModuleType) -> None:
        with page.app.app_context():
            g.tenant = "north"
            current_session.add(page.Order(tenant="south", item="rum"))
            with pytest.raises(DBAPIError, match="row-level security"):
                current_session.commit()
            current_session.rollback()

    def test_a_connection_has_no_tenant_when_it_is_back(self, page: ModuleType) -> None:
        self.add(page, "north", "tea")
        engine = page.maker.kw["bind"]
        with engine.connect() as connection:
            assert connection.execute(text("SELECT * FROM orders")).all() == []
            with pytest.raises(DBAPIError, match="row-level security"):
                connection.execute(
                    text("INSERT INTO orders (tenant, item) VALUES ('north', 'tea')")
                )

    def test_inside_isolate_it_is_the_same(self, page: ModuleType) -> None:
        with isolate(page.session):
            self.test_each_tenant_sees_its_rows_whatever_the_query_says(page)
        assert self.items(page, "north") == []

    def test_set_without_local_shows_the_rows_to_the_next_request(
        self, page: ModuleType
    ) -> None:
        self.add(page, "north", "tea")
        plain = Flask("plain")
        FlaskScopedSession(sessionmaker(page.maker.kw["bind"]), plain)
        with plain.app_context():
            current_session.execute(text("SET app.tenant = 'north'"))
            current_session.commit()
        with plain.app_context():  # of another tenant, say
            assert list(current_session.scalars(select(page.Order.item))) == ["tea"]

    def test_what_is_set_before_the_request_is_gone_after_a_commit(
        self, page: ModuleType
    ) -> None:
        self.add(page, "north", "tea")
        plain = Flask("plain")
        FlaskScopedSession(sessionmaker(page.maker.kw["bind"]), plain)
        with plain.app_context():
            current_session.execute(text("SET LOCAL app.tenant = 'north'"))
            assert len(current_session.scalars(select(page.Order)).all()) == 1
            current_session.commit()
            assert current_session.scalars(select(page.Order)).all() == []


class TestASchemaForEach:
    @pytest.fixture
    def page(
        self, recipe: Callable[[str], ModuleType], admin: Engine
    ) -> Iterator[ModuleType]:
        module = recipe("schema_translate_map=schema")
        engine = create_engine(admin.url, pool_size=1, max_overflow=0)
        module.make_session.__globals__["engine"] = engine
        with admin.connect() as connection:
            for name in ("tenant_north", "tenant_south"):
                connection.execute(CreateSchema(name))
                Base.metadata.create_all(
                    admin.execution_options(schema_translate_map={None: name})
                )
        yield module
        engine.dispose()
        with admin.connect() as connection:
            for name in ("tenant_north", "tenant_south"):
                connection.execute(DropSchema(name, cascade=True))

    def names(self, page: ModuleType, tenant: str) -> list[str]:
        with page.app.app_context():
            g.tenant = tenant
            return list(current_session.scalars(select(User.name)))

    def add(self, page: ModuleType, tenant: str, name: str) -> None:
        with page.app.app_context():
            g.tenant = tenant
            current_session.add(User(name=name))
            current_session.commit()

    def test_each_tenant_has_its_own_rows(self, page: ModuleType) -> None:
        self.add(page, "north", "ann")
        self.add(page, "south", "bob")
        assert self.names(page, "north") == ["ann"]
        assert self.names(page, "south") == ["bob"]

    def test_inside_isolate_it_is_the_same(self, page: ModuleType) -> None:
        with isolate(page.session):
            self.test_each_tenant_has_its_own_rows(page)
        assert self.names(page, "north") == self.names(page, "south") == []

    def test_a_search_path_stays_with_the_connection(
        self, page: ModuleType, admin: Engine
    ) -> None:
        self.add(page, "north", "ann")
        engine = create_engine(admin.url, pool_size=1, max_overflow=0)
        count = select(func.count(User.id))
        with Session(engine) as session:
            session.execute(text("SET search_path = tenant_north"))
            session.commit()
        with Session(engine) as another_requests:
            assert another_requests.scalar(count) == 1
        engine.dispose()
