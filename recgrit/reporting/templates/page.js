"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const root = document.documentElement;
  const drawn = new Set();
  const make = (tag, text, className) => {
    const element = document.createElement(tag);
    if (text !== undefined) element.textContent = text; // Never as HTML: titles are anybody's text.
    if (className) element.className = className;
    return element;
  };
  const color = (name) => getComputedStyle(root).getPropertyValue(name).trim();
  // Plotly reads some HTML in its texts.
  const plain = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const config = { responsive: true, displaylogo: false, displayModeBar: false };

  // --- Colours: the page's, or the other scheme by choice.
  const button = document.getElementById("theme");
  const prefersDark = matchMedia("(prefers-color-scheme: dark)");
  const setTheme = (theme) => {
    root.dataset.theme = theme;
    button.textContent = theme === "dark" ? "☀ Light" : "☾ Dark";
    for (const plot of drawn) Plotly.relayout(plot, themed(plot.layout));
  };
  const themed = (layout) => {
    const look = {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", "font.color": color("--soft"),
      "font.family": getComputedStyle(document.body).fontFamily, "font.size": 13,
      "hoverlabel.bgcolor": color("--card"), "hoverlabel.bordercolor": color("--line"),
      "hoverlabel.font.color": color("--ink"), "hoverlabel.align": "left",
    };
    for (const axis of Object.keys(layout).filter((key) => /^[xy]axis/.test(key)))
      Object.assign(look, { [`${axis}.gridcolor`]: color("--line"), [`${axis}.linecolor`]: color("--line"),
        [`${axis}.zerolinecolor`]: color("--line") });
    return look;
  };
  let chosen = null;
  button.addEventListener("click", () => setTheme((chosen = root.dataset.theme === "dark" ? "light" : "dark")));
  prefersDark.addEventListener("change", (event) => chosen || setTheme(event.matches ? "dark" : "light"));

  // --- The tree of IDs.
  let treeKind = "treemap";
  // Plotly takes its time for each node: of a large tree it gets the first codes, and what is below
  // one of them when that is opened.
  const MOST_NODES = 1500;
  let opened = 0;
  const firstOf = data.tree?.parent.map((parent) => parent) ?? [];
  firstOf.forEach((parent, node) => { if (node) firstOf[node] = parent === 0 ? node : firstOf[parent]; });
  const treeTrace = () => {
    const { tree } = data, isMap = treeKind === "treemap";
    const all = tree.parent.map((_, node) => node);
    const nodes = all.length <= MOST_NODES ? all : all.filter((node) => tree.parent[node] <= 0 || firstOf[node] === firstOf[opened]);
    return {
      type: treeKind, ids: nodes.map(String), level: String(opened), branchvalues: "total", sort: false, leaf: { opacity: 1 },
      parents: nodes.map((node) => (node ? String(tree.parent[node]) : "")),
      labels: nodes.map((node) => wrap(tree.label[node], 12) + example(node)),
      values: nodes.map((node) => tree.num_items[node]), maxdepth: isMap ? 2 : 3,
      marker: { colors: nodes.map((node) => (node === 0 ? "rgba(0,0,0,0)" : tree.colors[tree.color[node]] ?? "#98a1b0")),
        line: { width: 1, color: color("--card") }, ...(isMap ? { pad: { t: 22, l: 2, r: 2, b: 2 } } : {}) },
      tiling: isMap ? { pad: 1 } : undefined, pathbar: isMap ? { thickness: 26 } : undefined,
      customdata: nodes.map((node) => [
        plain(tree.prefix[node]), countItems(tree.num_items[node]), plain(tree.typical[node]),
        tree.examples[node].map((title) => `<br>· ${plain(title)}`).join(""), plain(tree.label[node])]),
      hovertemplate: "<b>%{customdata[4]}</b><br>%{customdata[0]}  %{customdata[1]}<br>%{customdata[2]}%{customdata[3]}<extra></extra>",
      textfont: { color: "#fff" }, insidetextorientation: "radial",
    };
  };
  const countItems = (number) => `${number.toLocaleString("en")} ${number === 1 ? "item" : "items"}`;
  // Whatever is open, what is above it is named and one click away.
  const showPlace = () => {
    const { tree } = data, above = [];
    for (let node = opened; node >= 0; node = tree.parent[node]) above.unshift(node);
    document.getElementById("tree-place").replaceChildren(...above.map((node, depth) => {
      const text = depth ? `${shortId(tree.prefix[node])} ${tree.label[node]}` : "All items";
      if (node === opened) return make("b", `${text}: ${countItems(tree.num_items[node])}`);
      const up = make("button", text, "button");
      up.type = "button";
      up.addEventListener("click", () => openNode(node));
      return up;
    }));
  };
  const shortId = (id) => id.replace(/[<>]/g, (mark) => (mark === "<" ? "" : " ")).replaceAll("_", "").trim();
  const openNode = (node) => {
    const place = document.getElementById("tree");
    opened = node;
    showPlace();
    if (drawn.delete(place)) Plotly.Fx.unhover(place);
    draw(place);
  };
  // Into a node, out of the one that is open; an item has nothing below it. Plotly's own zoom knows
  // only what is drawn, and no way out of an item.
  const onTreeClick = (event) => {
    const node = Number(event.points[0].id), { tree } = data;
    if (node === opened) openNode(Math.max(tree.parent[node], 0));
    else if (tree.parent.includes(node)) openNode(node);
    return false;
  };
  // A tile with room for it names an item below it: a category alone tells little.
  const example = (node) => {
    const { tree } = data, parent = tree.parent[node];
    const share = parent < 0 ? 0 : tree.num_items[node] / tree.num_items[parent];
    const [title] = tree.examples[node];
    if (share < (innerWidth < 720 ? 0.05 : 0.015) || !title || title === tree.label[node]) return "";
    return `<br><span style="font-size:10px">${wrap(title, 14)}</span>`;
  };
  // At most two lines, each no longer than this where words allow it.
  const wrap = (text, length) => {
    const lines = [];
    for (const word of text.split(" ")) {
      if (lines.length && `${lines.at(-1)} ${word}`.length <= length) lines.push(`${lines.pop()} ${word}`);
      else lines.push(word);
    }
    return lines.slice(0, 2).map(plain).join("<br>") + (lines.length > 2 ? "…" : "");
  };
  const treeLayout = () => ({
    height: innerWidth < 720 ? 460 : 640, margin: { l: 0, r: 0, t: 0, b: 0 }, uniformtext: { minsize: 8, mode: "hide" },
  });
  const zoomTree = (prefix) => {
    const node = data.tree.prefix.indexOf(prefix);
    const place = document.getElementById("tree");
    place.closest("section").scrollIntoView();
    openNode(Math.max(node, 0));
  };
  for (const choice of document.querySelectorAll("[data-tree]"))
    choice.addEventListener("click", () => {
      treeKind = choice.dataset.tree;
      for (const other of document.querySelectorAll("[data-tree]")) other.setAttribute("aria-pressed", String(other === choice));
      openNode(opened);
    });
  if (data.tree) showPlace();

  // Labels of groups stand side by side in a narrow window too.
  const sizeOfLabels = (place, traces) => {
    const labels = traces[0].x.flatMap((label) => label.split("<br>"));
    const room = (0.85 * place.clientWidth) / traces[0].x.length;
    return Math.max(7, Math.min(13, room / (0.64 * Math.max(...labels.map((label) => label.length)))));
  };

  // --- Figures are drawn when they come near the window: a long page opens fast.
  const draw = (place) => {
    if (drawn.has(place)) return;
    const isTree = place.id === "tree";
    const figure = isTree ? { data: [treeTrace()], layout: treeLayout() } : structuredClone(data.figures[place.id]);
    if (figure.layout.xaxis?.type === "category") figure.layout.xaxis.tickfont = { size: sizeOfLabels(place, figure.data) };
    Plotly.react(place, figure.data, figure.layout, config);
    drawn.add(place);
    if (isTree)
      for (const kind of ["treemap", "sunburst"]) {
        place.removeAllListeners(`plotly_${kind}click`);
        place.on(`plotly_${kind}click`, onTreeClick);
      }
    Plotly.relayout(place, themed(place.layout));
  };
  setTheme(prefersDark.matches ? "dark" : "light");
  const near = new IntersectionObserver((entries) => {
    for (const entry of entries) if (entry.isIntersecting) { near.unobserve(entry.target); draw(entry.target); }
  }, { rootMargin: "500px" });
  for (const place of document.querySelectorAll(".plot")) near.observe(place);
  // On paper figures have the width of the paper, and nothing is folded.
  const PAPER = 640;
  const unfolded = [];
  addEventListener("beforeprint", () => {
    for (const fold of document.querySelectorAll("details:not([open])")) unfolded.push(fold);
    for (const fold of unfolded) fold.open = true;
    for (const place of document.querySelectorAll(".plot")) {
      draw(place);
      if (place.clientWidth > PAPER || innerWidth < 720) Plotly.relayout(place, { width: PAPER });
      else Plotly.relayout(place, { width: Math.min(place.clientWidth, PAPER / 2 - 20) });
    }
  });
  addEventListener("afterprint", () => {
    for (const fold of unfolded.splice(0)) fold.open = false;
    for (const place of document.querySelectorAll(".plot")) Plotly.relayout(place, { width: null, autosize: true });
  });

  // --- Where in the page one is.
  const links = new Map([...document.querySelectorAll("nav.toc a")].map((link) => [link.hash.slice(1), link]));
  const here = new IntersectionObserver((entries) => {
    for (const entry of entries) if (entry.isIntersecting) {
      for (const link of links.values()) link.classList.remove("here");
      const link = links.get(entry.target.id);
      link?.classList.add("here");
      // On a phone the contents are one line that scrolls sideways.
      const bar = link?.parentElement;
      if (bar) bar.scrollLeft = link.offsetLeft - (bar.clientWidth - link.offsetWidth) / 2;
    }
  }, { rootMargin: "-10% 0px -80% 0px" });
  for (const section of document.querySelectorAll("section[id]")) here.observe(section);

  // --- The settings as a file.
  document.getElementById("save-settings")?.addEventListener("click", (event) => {
    const text = document.getElementById("settings-text").textContent, link = make("a");
    link.href = URL.createObjectURL(new Blob([text], { type: "application/yaml" }));
    link.download = event.currentTarget.dataset.name;
    link.click();
    URL.revokeObjectURL(link.href);
  });

  // --- The items, to search.
  const body = document.querySelector("#items tbody");
  if (!body) return;
  const { items } = data;
  const letters = "abcdefghijklmnopqrstuvwxyz";
  const idText = (codes) => codes.map((code, level) => `<${letters[level]}_${code}>`).join("");
  const titleOf = (row) => items.titles[row] || items.ids[row];
  const haystack = items.ids.map((id, row) => `${items.titles[row]}\n${id}\n${idText(items.codes[row])}`.toLowerCase());
  // Codes as they are shown: a whole one is meant, so that a3 is not a38.
  const shownCodes = items.codes.map((codes) => new Set(codes.map((code, level) => `${letters[level]}${code}`)));
  const isShownCode = (word) => /^[a-z]\d+$/.test(word);
  const byPrefix = new Map();
  items.codes.forEach((codes, row) => codes.forEach((_, level) => {
    const prefix = codes.slice(0, level + 1).join();
    if (!byPrefix.has(prefix)) byPrefix.set(prefix, []);
    byPrefix.get(prefix).push(row);
  }));
  const chips = (codes, numShared = 0) => {
    const all = make("span");
    codes.forEach((code, level) => all.append(make("span", `${letters[level]}${code}`, level < numShared ? "chip shared" : "chip")));
    return all;
  };
  const siblings = (row) => {
    const box = make("div", undefined, "siblings");
    const codes = items.codes[row], seen = new Set([row]);
    for (let shared = codes.length - 1; shared > 0 && seen.size < 25; shared--) {
      const found = byPrefix.get(codes.slice(0, shared).join()).filter((other) => !seen.has(other));
      if (!found.length) continue;
      found.sort((a, b) => items.counts[b] - items.counts[a]);
      box.append(make("div", `${found.length.toLocaleString("en")} ${found.length > 1 ? "share" : "shares"} the first ${shared} of ${codes.length} codes${found.length > 8 ? "; most interactions first:" : ""}`, "label"));
      const list = make("ul");
      for (const other of found.slice(0, 8)) {
        const entry = make("li");
        entry.append(chips(items.codes[other], shared), make("span", ` ${titleOf(other)}`));
        list.append(entry);
        seen.add(other);
      }
      box.append(list);
      for (const other of found) seen.add(other);
    }
    if (seen.size === 1) box.append(make("div", "No other item shares its first code.", "muted"));
    box.prepend(make("div", `Item ${items.ids[row]}, ID ${idText(codes)}`, "muted"));
    const go = make("button", "Show in the tree", "button");
    go.addEventListener("click", () => zoomTree(idText(codes.slice(0, 1))));
    box.append(go);
    return box;
  };
  const toggle = (line, row) => {
    const next = line.nextElementSibling;
    const isOpen = next?.classList.contains("detail");
    line.querySelector("button").setAttribute("aria-expanded", String(!isOpen));
    if (isOpen) return next.remove();
    const detail = make("tr", undefined, "detail"), cell = make("td");
    cell.colSpan = 4;
    cell.append(siblings(row));
    detail.append(cell);
    line.after(detail);
  };
  const status = document.getElementById("found"), more = document.getElementById("more");
  let matches = [], shown = 0;
  const showMore = (number) => {
    for (const row of matches.slice(shown, shown + number)) {
      const line = make("tr", undefined, "item"), title = make("td"), open = make("button", titleOf(row), "open-item");
      open.setAttribute("aria-expanded", "false");
      title.append(open);
      const id = make("td"), count = make("td", items.counts[row].toLocaleString("en"), "num");
      id.append(chips(items.codes[row]));
      line.append(title, make("td", items.ids[row]), id, count);
      line.addEventListener("click", () => toggle(line, row));
      body.append(line);
    }
    shown = Math.min(matches.length, shown + number);
    more.hidden = shown === matches.length;
    status.textContent = matches.length ? `${matches.length.toLocaleString("en")} found, ${shown} shown` : "Nothing found";
  };
  const hasWord = (word, hay, row) => (isShownCode(word) && shownCodes[row].has(word)) || hay.includes(word);
  const search = (text) => {
    // Chips copied out of the page may stand without blanks.
    const words = text.toLowerCase().replace(/^((?:[a-z]\d+){2,})$/, (all) => all.replace(/(\d)(?=[a-z])/g, "$1 ")).split(/\s+/).filter(Boolean);
    matches = haystack.flatMap((hay, row) => (words.every((word) => hasWord(word, hay, row)) ? [row] : []));
    // Whose code it is, before those that have it in their title or id.
    const hits = (row) => words.filter((word) => shownCodes[row].has(word)).length;
    const place = new Map(matches.map((row) => [row, hits(row)]));
    matches.sort((a, b) => place.get(b) - place.get(a) || items.counts[b] - items.counts[a]);
    body.replaceChildren();
    shown = 0;
    showMore(15);
  };
  document.getElementById("search").addEventListener("input", (event) => search(event.target.value));
  more.addEventListener("click", () => showMore(100));
  search("");
})();
