"use strict";

// Tables: a click on a column's head sorts by it; numbers stand in data-value.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  const valueOf = (row, column) => {
    const cell = row.cells[column];
    if (!("value" in cell.dataset)) return cell.textContent.trim();
    return cell.dataset.value === "" ? NaN : Number(cell.dataset.value);
  };
  heads.forEach((head, column) => {
    head.querySelector("button").addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const sign = down ? -1 : 1;
      const rows = [...body.rows].sort((a, b) => {
        const [x, y] = [valueOf(a, column), valueOf(b, column)];
        if (typeof x !== "number" || typeof y !== "number") return sign * String(x).localeCompare(String(y));
        if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y);  // last
        return sign * (x - y);
      });
      body.append(...rows);
    });
  });
}

// Attention: another layer, another head.
const percent = (share, digits = 1) => (100 * share).toFixed(digits) + "%";
for (const figure of document.querySelectorAll(".strip[data-attention]")) {
  const data = JSON.parse(figure.querySelector("script").textContent);
  const [layer, head] = figure.querySelectorAll("select");
  const bars = [...figure.querySelectorAll(".attention rect")];
  const evenly = figure.querySelectorAll(".attention line");
  const words = figure.querySelector("output");
  const mean = (lists) => lists[0].map((_, n) => lists.reduce((sum, one) => sum + one[n], 0) / lists.length);
  const draw = () => {
    const all = data.weights[layer.value], own = data.own[layer.value];
    const weights = head.value === "mean" ? mean(all) : all[head.value];
    const self = head.value === "mean" ? own.reduce((a, b) => a + b) / own.length : own[head.value];
    const most = Math.max(...weights);
    const where = weights.indexOf(most);
    bars.forEach((bar, n) => {
      const height = most > 0 ? 100 * weights[n] / most : 0;
      bar.setAttribute("y", (100 - height).toFixed(2));
      bar.setAttribute("height", height.toFixed(2));
      bar.dataset.value = weights[n];
      bar.firstElementChild.textContent = `${data.begin[n].toFixed(2)} s: ${percent(weights[n], 2)}`;
    });
    const level = (1 - self) / weights.length;
    for (const line of evenly) {
      line.setAttribute("y1", 100 - 100 * level / most);
      line.setAttribute("y2", 100 - 100 * level / most);
    }
    words.textContent = `most ${percent(most, 2)} at ${data.begin[where].toFixed(2)} s; dashed: spread evenly, ` +
      `${percent(level, 2)} a bar; [CLS] to itself ${percent(self)}`;
  };
  layer.addEventListener("change", draw);
  head.addEventListener("change", draw);
}

// The whole confusion matrix: a pixel or more for each cell, read out by pointer or arrow keys.
for (const part of document.querySelectorAll(".overview")) {
  const data = JSON.parse(part.querySelector("script").textContent);
  const canvas = part.querySelector("canvas");
  const words = part.querySelector("output");
  const order = part.querySelector("select");
  const count = data.classes.length;
  const cells = new Map(data.cells.map(([i, j, n]) => [i * count + j, n]));
  const size = Math.max(1, Math.floor(960 / count));
  canvas.width = canvas.height = size * count;
  const place = new Array(count);
  let ranked = [], row = 0, column = 0, isChosen = false;
  const draw = () => {
    ranked = data.orders[order.value];
    ranked.forEach((index, rank) => { place[index] = rank; });
    const style = getComputedStyle(document.documentElement);
    const context = canvas.getContext("2d");
    context.clearRect(0, 0, canvas.width, canvas.height);
    for (const [i, j, n] of data.cells) {
      const shade = style.getPropertyValue(i === j ? "--shade" : "--shade-wrong");
      context.fillStyle = `rgba(${shade}, ${(0.15 + 0.85 * Math.sqrt(n / data.totals[i])).toFixed(3)})`;
      context.fillRect(place[j] * size, place[i] * size, size, size);
    }
    if (!isChosen) return;
    context.strokeStyle = style.getPropertyValue("--text");
    context.lineWidth = 2;
    context.strokeRect(column * size - 3, row * size - 3, size + 6, size + 6);
  };
  const tell = () => {
    isChosen = true;
    draw();
    const [i, j] = [ranked[row], ranked[column]];
    const n = cells.get(i * count + j) || 0;
    const share = data.totals[i] ? ` (${percent(n / data.totals[i])})` : "";
    words.textContent = `${data.classes[i]} taken for ${data.classes[j]}: ` +
      `${n} of ${data.totals[i]} videos${share}`;
  };
  const clamp = (value) => Math.min(count - 1, Math.max(0, value));
  canvas.addEventListener("pointermove", (event) => {
    const box = canvas.getBoundingClientRect();
    column = clamp(Math.floor((event.clientX - box.left) / box.width * count));
    row = clamp(Math.floor((event.clientY - box.top) / box.height * count));
    tell();
  });
  canvas.addEventListener("keydown", (event) => {
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!step) return;
    event.preventDefault();
    row = clamp(row + step[0]);
    column = clamp(column + step[1]);
    tell();
  });
  order.addEventListener("change", () => (isChosen ? tell() : draw()));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  draw();
}
