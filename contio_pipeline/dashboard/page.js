"use strict";
// What the page does with its data: filters add up cells, charts and tables show the sums. Text is set as text, never as markup.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const ALL = -1;
  const ONE = "var(--one)", TWO = "var(--two)", THREE = "var(--three)";
  const DAY = 86400000;
  const at = (id) => document.getElementById(id);
  const make = (tag, properties = {}, ...inside) => {
    const made = Object.assign(document.createElement(tag), properties);
    made.append(...inside);
    return made;
  };
  const monday = (week) => new Date(Date.parse(data.first) + week * 7 * DAY).toISOString().slice(0, 10);
  const weekOf = (day) => Math.floor((Date.parse(day) - Date.parse(data.first)) / (7 * DAY));
  const round = (number, digits = 1) => (Number.isFinite(number) ? Number(number.toFixed(digits)) : null);
  const share = (part, whole) => (whole ? round((100 * part) / whole) : null);
  const said = (value) => (value === null || value === undefined ? "–" : typeof value === "number" ? value.toLocaleString("en") : value);

  // Filters -----------------------------------------------------------------------------------------------------------

  const PRESETS = [...at("period").options].map((one) => Number(one.value)).filter(Boolean);
  const USUAL = 13;
  const last = (weeks) => ({ until: data.now, from: Math.max(0, data.now + 1 - weeks) });
  const start = { ...last(USUAL), person: ALL, account: ALL, unknown: [] };
  const state = { ...start };
  const within = (week) => Math.min(Math.max(week, 0), data.weeks - 1);
  const preset = () => (state.until === data.now ? PRESETS.find((weeks) => state.from === last(weeks).from) : undefined);

  /** What the end of the page's address asks for; a period is told by its length, so that it moves on with what is published. */
  function fromAddress() {
    const asked = new URLSearchParams(location.hash.slice(1));
    Object.assign(state, start, { unknown: [] });
    const weeks = Number(asked.get("period"));
    if (PRESETS.includes(weeks)) Object.assign(state, last(weeks));
    for (const name of ["from", "until"]) {
      const week = weekOf(asked.get(name) ?? "");
      if (Number.isFinite(week)) state[name] = within(week);
    }
    state.until = Math.max(state.from, state.until);
    for (const [name, known] of [["person", data.people.map((one) => one.id)], ["account", data.accounts.length > 1 ? data.accounts : []]]) {
      state[name] = known.indexOf(asked.get(name));
      if (asked.get(name) && state[name] === ALL) state.unknown.push(name);
    }
  }

  function toAddress() {
    const asked = new URLSearchParams();
    if (!preset()) {
      asked.set("from", monday(state.from));
      asked.set("until", monday(state.until));
    } else if (preset() !== USUAL) asked.set("period", preset());
    if (state.person !== ALL) asked.set("person", data.people[state.person].id);
    if (state.account !== ALL) asked.set("account", data.accounts[state.account]);
    history.replaceState(null, "", `#${asked}`);
  }

  function showFilters() {
    const days = { from: monday(state.from), until: new Date(Date.parse(monday(state.until)) + 6 * DAY).toISOString().slice(0, 10) };
    for (const [name, day] of Object.entries(days)) {
      if (document.activeElement !== at(name)) at(name).value = day; // nobody's typing is overwritten
    }
    at("person").value = state.person;
    at("account").value = state.account;
    at("period").value = preset() ?? "";
    const name = (text) => make("bdi", { textContent: text });
    const who = state.person === ALL ? ["everyone"] : [name(data.people[state.person].name)];
    const through = state.account === ALL ? ["all accounts"] : ["account ", name(data.accounts[state.account])];
    const unknown = state.unknown.length ? [` The ${state.unknown.join(" and the ")} that the address names cannot be chosen here.`] : [];
    at("chosen").replaceChildren(`Shown: ${days.from} to ${days.until}, `, ...who, ", ", ...through, ".", ...unknown);
  }

  /** Sums of the cube's measures for each week (or other key) that is asked for. */
  function sums(cube, keys) {
    const added = new Map(keys.map((key) => [key, Object.fromEntries(cube.measures.map((name) => [name, 0]))]));
    const { account, person, key } = cube;
    for (let cell = 0; cell < key.length; cell++) {
      if (account[cell] !== state.account || (state.person !== ALL && person[cell] !== state.person)) continue;
      const sum = added.get(key[cell]);
      if (sum) for (const name of cube.measures) sum[name] += cube[name][cell];
    }
    return keys.map((key) => ({ key, ...added.get(key) }));
  }

  const weeks = () => Array.from({ length: state.until - state.from + 1 }, (_, number) => state.from + number);

  // Charts ------------------------------------------------------------------------------------------------------------

  const drawn = new Map(); // section -> what ends its chart
  let refreshed; // when all charts of the latest choice are drawn
  const CONFIG = {
    background: null,
    font: "system-ui, sans-serif",
    view: { stroke: null },
    axis: {
      labelColor: "var(--muted)", titleColor: "var(--muted)", gridColor: "var(--grid)", domainColor: "var(--line)", tickColor: "var(--line)",
      labelFontSize: 12, titleFontSize: 12, titleFontWeight: "normal",
    },
  };
  const X = {
    field: "week", type: "ordinal", title: null, sort: null,
    axis: { labelExpr: "utcFormat(toDate(datum.value), '%-d %b')", labelAngle: 0, labelOverlap: "greedy", labelSeparation: 6, labelPadding: 6, ticks: false },
  };

  const TOLD = { tooltip: { field: "told" }, description: { field: "told" } };
  const WHOLE = { events: { tickMinStep: 1 }, "action items": { tickMinStep: 1 } };

  /** Whether the publish policy leaves what a part of the page is made of; and, where a person is chosen, whose it is. */
  const isShown = (part) => !data.hidden.includes(part) && (state.person === ALL || !data.nobody.includes(part));

  /** A chart of series over weeks; `rows` have `week` and the series' fields. */
  function overWeeks(rows, series, unit, mark) {
    const long = rows.flatMap(({ week, ...row }) => series.map(({ field, name }) => ({ week, what: name, value: row[field], told: `${name}, week of ${week}: ${said(row[field])} ${unit}${row.told?.[field] ?? ""}` })));
    const names = series.map((one) => one.name);
    const color = { field: "what", type: "nominal", legend: null, scale: { domain: names, range: series.map((one) => one.color) } };
    const dash = { field: "what", type: "nominal", legend: null, scale: { domain: names, range: [[1, 0], [6, 3], [2, 2]] } };
    const y = { field: "value", type: "quantitative", title: unit, axis: { tickCount: 5, ...WHOLE[unit] }, ...(unit === "%" ? { scale: { domain: [0, 100] } } : {}) };
    const encoding = { x: X, y, color, ...TOLD };
    const marks = {
      bars: { mark: "bar", encoding },
      beside: { mark: "bar", encoding: { ...encoding, xOffset: { field: "what", type: "nominal", sort: names } } },
      lines: {
        encoding,
        layer: [{ mark: { type: "line", strokeWidth: 2, aria: false }, encoding: { strokeDash: dash } }, { mark: { type: "point", filled: true, size: 45, opacity: 1 } }],
      },
    };
    return { data: { values: long }, height: 220, ...marks[mark] };
  }

  function key(series) {
    const swatch = (color) => {
      const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
      const rect = document.createElementNS("http://www.w3.org/2000/svg", "rect");
      for (const [name, value] of Object.entries({ width: 14, height: 14, "aria-hidden": true })) svg.setAttribute(name, value);
      for (const [name, value] of Object.entries({ width: 14, height: 14, fill: color })) rect.setAttribute(name, value);
      svg.append(rect);
      return svg;
    };
    return make("ul", { className: "key" }, ...series.map(({ name, color }) => make("li", {}, swatch(color), name)));
  }

  function table(columns, rows) {
    const cell = (tag, value, scope) => make(tag, { textContent: said(value), ...(scope ? { scope } : {}) });
    const head = make("tr", {}, ...columns.map((name) => cell("th", name, "col")));
    const body = rows.map((row) => make("tr", {}, ...row.map((value, number) => (number ? cell("td", value) : cell("th", value, "row")))));
    return make("table", {}, make("thead", {}, head), make("tbody", {}, ...body));
  }

  const scroll = (name, inside) => {
    const region = make("div", { className: "scroll", tabIndex: 0 }, inside);
    region.setAttribute("role", "region");
    region.setAttribute("aria-label", name);
    return region;
  };

  /** Draw one of SECTIONS: what it shows of the state that is chosen. */
  function draw(id, { title, doc, show }) {
    let section = at(id);
    if (!section) {
      section = make("section", { id });
      section.setAttribute("aria-labelledby", `${id}-title`);
      section.append(make("h2", { id: `${id}-title`, textContent: title }), make("div"));
      at("charts").append(section);
    }
    drawn.get(id)?.();
    drawn.delete(id);
    const open = section.querySelector("details")?.open ?? false;
    const figure = make("figure", {}, make("figcaption", { textContent: doc }));
    section.lastChild.replaceWith(figure);
    if (!isShown(id)) {
      figure.append(make("p", { textContent: "Not shown: the publish policy hides what it is made of, or whose it is." }));
      return;
    }
    const { spec, series = [], columns, rows = [], empty } = show();
    if (empty || rows.every(([, ...values]) => !values.some(Boolean))) {
      figure.append(make("p", { textContent: empty ?? "There is nothing to show." }));
      return;
    }
    if (series.length > 1) figure.append(key(series));
    const chart = make("div", { className: "chart" });
    const numbers = make("details", { open }, make("summary", { textContent: "The numbers" }), scroll(`${title}, the numbers`, table(columns, rows)));
    figure.append(chart, numbers);
    const description = `${title}. ${doc} The numbers follow as a table.`;
    const whole = { ...spec, width: "container", autosize: { type: "fit-x", contains: "padding" }, config: CONFIG, description };
    const drawing = async () => vegaEmbed(chart, whole, { mode: "vega-lite", renderer: "svg", actions: false, hover: false, defaultStyle: false });
    return drawing().then(({ finalize }) => {
      if (chart.isConnected) drawn.set(id, finalize);
      else finalize(); // another choice was made meanwhile
    }).catch((error) => chart.replaceChildren(make("p", { className: "bad", textContent: `The chart cannot be drawn (${error.message}); its numbers are below.` })));
  }

  // What is shown -----------------------------------------------------------------------------------------------------

  const NOBODY = { cells: [], empty: "The account's user is not among those who can be chosen, or nothing is known of them." };

  /** Cells of the load: whose they are is the person that is chosen, else the account's user, else everyone. */
  function load() {
    const { person, key, minutes, events, people } = data.load;
    const whose = state.person !== ALL ? state.person : state.account === ALL ? null : data.users[state.account];
    if (whose === ALL) return NOBODY;
    const cells = [];
    for (let cell = 0; cell < key.length; cell++) {
      if ((whose === null || person[cell] === whose) && key[cell] >= state.from && key[cell] <= state.until) {
        cells.push({ person: person[cell], week: key[cell], minutes: minutes[cell], events: events[cell], people: people[cell] });
      }
    }
    return { cells };
  }

  const loadByWeek = (cells) =>
    weeks().map((week) => {
      const of = cells.filter((one) => one.week === week);
      const [minutes, events, people] = ["minutes", "events", "people"].map((name) => of.reduce((sum, one) => sum + one[name], 0));
      return { week: monday(week), people, events, hours: round(minutes / 60, 2), each: people ? round(minutes / 60 / people, 2) : 0 };
    });

  /** What is counted in each week: `rows` have the series' fields, and `key`, the number of the week. */
  function counted(rows, series, unit, mark) {
    const told = rows.map(({ key, ...row }) => ({ week: monday(key), ...row }));
    return {
      spec: overWeeks(told, series, unit, mark), series,
      columns: ["week of", ...series.map(({ name }) => name)], rows: told.map((row) => [row.week, ...series.map(({ field }) => row[field])]),
    };
  }

  /** Shares of meetings: of the measure `whole`, those that each series' measure `of` counts. */
  function shares(whole, series, mark) {
    const rows = sums(data.meetings, weeks()).map((one) => ({ week: monday(one.key), ...one }));
    for (const row of rows) {
      row.told = {};
      for (const { field, of } of series) {
        row[field] = share(row[of], row[whole]);
        row.told[field] = ` (${said(row[of])} of ${said(row[whole])})`;
      }
    }
    return {
      spec: overWeeks(rows, series, "%", mark), series,
      columns: ["week of", "meetings", ...series.flatMap(({ name }) => [name, `${name}, %`])],
      rows: rows.map((row) => [row.week, row[whole], ...series.flatMap(({ field, of }) => [row[of], row[field]])]),
    };
  }

  const AGES = ["up to 7 days", "8 to 30 days", "31 to 90 days", "over 90 days"];
  const OPEN = [
    { field: "open", name: "open", color: ONE }, { field: "overdue", name: "overdue", color: TWO }, { field: "aged", name: "open for over 30 days", color: THREE },
  ].filter(({ field }) => !data.hidden.includes(field));
  const DONE = [{ field: "created", name: "created", color: ONE }, { field: "completed", name: "completed", color: THREE }];
  const LINKS = [
    { field: "linked", name: "has its Contio meeting", color: ONE }, { field: "unseen", name: "names a meeting that no account sees", color: TWO },
    { field: "none", name: "names none", color: THREE },
  ];
  const LEFT = [
    { field: "noted_share", of: "noted", name: "with notes", color: ONE }, { field: "items_share", of: "with_items", name: "with action items", color: TWO },
  ].filter(({ field }) => !data.hidden.includes(field));
  const PREPARED = [{ field: "prepared_share", of: "prepared", name: "prepared", color: ONE }];

  /** What there was to do at the end of each week (of today, in this one): all that came before, added up. */
  function openItems() {
    const all = sums(data.items, Array.from({ length: data.now + 2 }, (_, number) => number - 1));
    const left = { open: 0, overdue: 0, aged: 0 };
    return all.map((one) => {
      for (const name of Object.keys(left)) left[name] += one[name];
      return { key: one.key, ...left };
    });
  }

  const SECTIONS = {
    load: {
      title: "Hours in meetings, by week",
      doc: "Hours per person with at least one meeting in that week; guests count too, overlaps once. Person: whose week it is. Account: its user, where no person is chosen.",
      show: () => {
        const { cells, empty } = load();
        if (empty) return { empty };
        const rows = loadByWeek(cells);
        return {
          spec: overWeeks(rows, [{ field: "each", name: "hours per person", color: ONE }], "hours", "bars"),
          columns: ["week of", "people", "hours", "hours per person", "events"],
          rows: rows.map((row) => [row.week, row.people, row.hours, row.each, row.events]),
        };
      },
    },
    people: {
      title: "Hours in meetings, by person and week",
      doc: "The 20 people with most hours in the period; the stronger, the more. Person: whose week it is. Account: its user, where no person is chosen.",
      show: () => {
        const { cells, empty } = load();
        if (empty) return { empty };
        const total = new Map();
        for (const one of cells) if (one.person !== ALL) total.set(one.person, (total.get(one.person) ?? 0) + one.minutes);
        const most = [...total].sort((a, b) => b[1] - a[1]).slice(0, 20).map(([person]) => person);
        const hours = new Map(cells.map((one) => [`${one.person} ${one.week}`, round(one.minutes / 60, 2)]));
        const name = (person) => data.people[person].name;
        const values = most.flatMap((person) => weeks().map((week) => {
          const spent = hours.get(`${person} ${week}`) ?? 0;
          return { person: name(person), week: monday(week), hours: spent, told: `${name(person)}, week of ${monday(week)}: ${said(spent)} hours` };
        }));
        return {
          spec: {
            data: { values }, height: 20 * most.length,
            mark: { type: "rect", color: ONE, stroke: "var(--card)" },
            encoding: {
              x: X,
              y: { field: "person", type: "nominal", title: null, sort: null, axis: { labelLimit: innerWidth < 600 ? 90 : 170, ticks: false } },
              fillOpacity: { field: "hours", type: "quantitative", legend: null, scale: { domainMin: 0, range: [0.04, 1] } },
              ...TOLD,
            },
          },
          columns: ["person", "hours in all", ...weeks().map(monday)],
          rows: most.map((person) => [name(person), round(total.get(person) / 60, 2), ...weeks().map((week) => hours.get(`${person} ${week}`) ?? 0)]),
        };
      },
    },
    open: {
      title: "Action items: open and overdue",
      doc: `At the end of each week; in the last one, of ${data.today}. ${data.known_since ? `Before ${data.known_since}, the first sync, those that were deleted are missing. ` : ""}Person: who is to do it. Account: of what it sees now.`,
      show: () => counted(openItems().filter(({ key }) => key >= state.from && key <= state.until), OPEN, "action items", "lines"),
    },
    ages: {
      title: "Action items: how old are those that are open?",
      doc: `On ${data.today}, whatever the period. Person: who is to do it. Account: of what it sees.`,
      show: () => {
        const rows = sums(data.ages, [0, 1, 2, 3]).map((one) => ({ ...one, age: AGES[one.key], later: one.open - one.overdue }));
        const series = data.hidden.includes("overdue") ? OPEN.slice(0, 1) : [{ field: "overdue", name: "overdue", color: TWO }, { field: "later", name: "not overdue", color: ONE }];
        const values = rows.flatMap((row) => series.map(({ field, name }) => ({ age: row.age, what: name, value: row[field], told: `${name}, for ${row.age}: ${said(row[field])}` })));
        const names = series.map((one) => one.name);
        return {
          spec: {
            data: { values }, height: 220, mark: "bar",
            encoding: {
              y: { field: "age", type: "ordinal", sort: AGES, title: null, axis: { ticks: false } },
              x: { field: "value", type: "quantitative", title: "action items", axis: { tickCount: 5, tickMinStep: 1 } },
              color: { field: "what", type: "nominal", legend: null, scale: { domain: names, range: series.map((one) => one.color) } },
              ...TOLD,
            },
          },
          series, columns: ["open for", ...names], rows: rows.map((row) => [row.age, ...series.map(({ field }) => row[field])]),
        };
      },
    },
    done: {
      title: "Action items: created and completed",
      doc: `In each week, the last one until ${data.today}. Person: who is to do it. Account: of what it sees now.`,
      show: () => counted(sums(data.items, weeks()), DONE, "action items", "beside"),
    },
    hygiene: {
      title: "Hygiene: what meetings left behind",
      doc: "Of the meetings that have ended, those with summary notes, and those with action items. Person: who created the meeting. Account: of what it sees.",
      show: () => shares("ended", LEFT, "lines"),
    },
    coverage: {
      title: "Context: were meetings prepared?",
      doc: "Meetings with a context document before they began, or so far; only those that this application uploaded are known. Person: who created the meeting. Account: of what it sees.",
      show: () => shares("meetings", PREPARED, "bars"),
    },
    linkage: {
      title: "Calendar: which events have a Contio meeting?",
      doc: "Events of the calendars that are read; copies in several count each. Person: who organizes. Account: of what it sees.",
      show: () => counted(sums(data.events, weeks()), LINKS, "events", "bars"),
    },
  };

  function figures() {
    const { cells, empty } = load();
    const now = openItems().at(-1);
    const met = sums(data.meetings, weeks()).reduce((all, one) => Object.fromEntries(Object.keys(one).map((name) => [name, (all[name] ?? 0) + one[name]])), {});
    const events = sums(data.events, weeks()).reduce((all, one) => ({ linked: all.linked + one.linked, all: all.all + one.linked + one.unseen + one.none }), { linked: 0, all: 0 });
    const minutes = cells.reduce((sum, one) => sum + one.minutes, 0);
    const alone = state.person !== ALL || state.account !== ALL;
    const divisor = alone ? weeks().length : cells.reduce((sum, one) => sum + one.people, 0);
    const percent = (value) => (value === null ? "–" : `${value} %`);
    const shown = [
      ["load", alone ? "hours in meetings a week" : "hours in meetings per person, in weeks with any", said(divisor && !empty ? round(minutes / 60 / divisor) : null)],
      ["open", `action items open on ${data.today}`, said(now.open)],
      ["overdue", "of them overdue", said(now.overdue)],
      ["noted_share", "ended meetings with notes", percent(share(met.noted, met.ended))],
      ["coverage", "meetings prepared so far", percent(share(met.prepared, met.meetings))],
      ["linkage", "events with their meeting", percent(share(events.linked, events.all))],
    ];
    at("figures").replaceChildren(
      ...shown.filter(([id]) => isShown(id)).map(([id, name, value]) => make("div", { id: `figure-${id}` }, make("dt", { textContent: name }), make("dd", { textContent: value }))),
    );
  }

  function health() {
    const rows = data.health.filter((one) => state.account === ALL || one.account === data.accounts[state.account]);
    const bad = rows.filter((one) => one.state !== "complete");
    const body = [...bad, ...rows.filter((one) => one.state === "complete")].map((one) =>
      make("tr", {}, make("th", { scope: "row", textContent: one.account }), make("td", { textContent: one.stream }),
        make("td", { className: one.state === "complete" ? "good" : "bad", textContent: one.state }),
        ...[one.reason ?? "", one.listed ?? "never", said(one.broken)].map((text) => make("td", { textContent: text }))),
    );
    const head = ["account", "stream", "state", "why not, and what to do", `last listed (${data.zone})`, "broken rows"];
    const grid = make("table", { className: "words" }, make("thead", {}, make("tr", {}, ...head.map((name) => make("th", { scope: "col", textContent: name })))), make("tbody", {}, ...body));
    const told = bad.length ? `${bad.length} of ${rows.length} are not complete, or not any more.` : `All ${rows.length} are complete.`;
    const section = at("health") ?? make("section", { id: "health", className: "wide" });
    section.setAttribute("aria-labelledby", "health-title");
    section.replaceChildren(
      make("h2", { id: "health-title", textContent: "Syncs: how far can this be relied on?" }), make("p", { className: bad.length ? "bad" : "good", textContent: told }),
      scroll("Syncs, each account and stream", grid),
    );
    at("charts").append(section);
  }

  function tell() {
    const hours = (Date.now() - Date.parse(data.published)) / 3600000;
    const age = hours < 1 ? "less than an hour ago" : hours < 48 ? `${Math.floor(hours)} h ago` : `${Math.floor(hours / 24)} days ago`;
    Object.assign(at("age"), { className: hours > 48 ? "bad" : "", textContent: `As of ${data.published_local} (${data.zone}), ${age}. ` });
  }

  function introduce() {
    const bad = data.health.filter((one) => one.state !== "complete").length;
    at("told").append(
      make("a", { href: "#health", className: bad ? "bad" : "", textContent: bad ? `${bad} of ${data.health.length} parts are not complete, or not any more.` : "Everything is complete." }),
      ...(data.undated.length ? [` In no week, for they have no date: ${data.undated.join(", ")}.`] : []),
      ...(data.others ? [` ${said(data.others)} more people are in the sums, not in the list.`] : []),
    );
  }

  function refresh() {
    toAddress();
    showFilters();
    figures();
    document.body.ariaBusy = "true";
    const charts = Object.entries(SECTIONS).map(([id, section]) => draw(id, section));
    health();
    const all = Promise.all(charts).then(() => {
      if (all === refreshed) document.body.ariaBusy = "false";
    });
    refreshed = all;
  }

  const option = (value, text) => make("option", { value, textContent: text });
  at("person").append(option(ALL, "everyone"), ...data.people.map((one, number) => option(number, one.name)));
  at("account").append(option(ALL, "all accounts"), ...(data.accounts.length > 1 ? data.accounts : []).map((name, number) => option(number, name)));
  at("from").min = at("until").min = data.first;
  at("from").max = at("until").max = new Date(Date.parse(monday(data.weeks)) - DAY).toISOString().slice(0, 10);
  at("filters").addEventListener("change", ({ target }) => {
    if (target.id === "person" || target.id === "account") state[target.id] = Number(target.value);
    else if (target.id === "period") {
      if (target.value) Object.assign(state, last(Number(target.value)));
    } else {
      const week = weekOf(target.value);
      if (week !== within(week)) return; // half a year number is none yet
      state[target.id] = week;
      if (state.from > state.until) state[target.id === "from" ? "until" : "from"] = state[target.id];
    }
    refresh();
  });
  at("filters").addEventListener("focusout", () => setTimeout(showFilters));
  at("filters").addEventListener("submit", (event) => event.preventDefault());
  at("filters").addEventListener("reset", (event) => {
    event.preventDefault();
    Object.assign(state, start);
    refresh();
  });
  addEventListener("click", (event) => {
    const place = event.target.closest?.("a[href^='#']");
    if (!place) return;
    event.preventDefault(); // the end of the address holds the filters
    const target = at(place.hash.slice(1));
    target.tabIndex = -1;
    target.focus();
    target.scrollIntoView();
  });
  addEventListener("hashchange", () => {
    fromAddress();
    refresh();
  });
  fromAddress();
  introduce();
  tell();
  setInterval(tell, 60000);
  refresh();
})();
