"use strict";
// Draw the pictures from the JSON beside them, in the page's light or dark colours: when they are unfolded, and for paper.

const THEMES = {
  light: {
    text: "#1f2430", muted: "#5b6472", grid: "#e7e9ee", line: "#5b6472", absent: "#f1f2f5", label: "#ffffff", zone: "#dfe3ea",
    none: "#6b7280", batch: "#0065b3", group: "#c94f00", layer: "#00806a", instance: "#b0457f", rms: "#946300",
    ghost: "#1b8fc4", renorm: "#5d3fa8", other1: "#3f4756", other2: "#8a3b2e", other3: "#3d7a2b", other4: "#7a6a9c",
    cool0: "#f3f7fb", cool1: "#8dbbe0", cool2: "#0f5b99", middle: "#f7f7f5", warm2: "#c25a12",
  },
  dark: {
    text: "#e6e8ec", muted: "#a3abb8", grid: "#2c3139", line: "#a3abb8", absent: "#22262d", label: "#22262d", zone: "#38404b",
    none: "#9aa3b0", batch: "#55aef2", group: "#ff9250", layer: "#35c9a4", instance: "#ec93c3", rms: "#e3b341",
    ghost: "#9bdcff", renorm: "#ab95f5", other1: "#c5cad3", other2: "#e59b8d", other3: "#98d184", other4: "#c3b5e0",
    cool0: "#1f2a36", cool1: "#2f6ea6", cool2: "#8fcbff", middle: "#2b2f36", warm2: "#ff9c5a",
  },
};
const FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif';
const dark = window.matchMedia("(prefers-color-scheme: dark)");
const touch = window.matchMedia("(pointer: coarse), (hover: none)").matches || navigator.maxTouchPoints > 0;
document.documentElement.classList.toggle("touch", touch);

function colour(token, theme) {
  const match = /^@(\w+)(?:\/([\d.]+))?$/.exec(token);
  if (!match || !(match[1] in theme)) return token;
  const hex = theme[match[1]];
  if (match[2] === undefined) return hex;
  const [red, green, blue] = [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
  return `rgba(${red}, ${green}, ${blue}, ${match[2]})`;
}

// Copy a figure with its colour tokens replaced; texts stay unchanged, whatever they begin with.
function paint(value, theme, name = "") {
  if (typeof value === "string") return /color/.test(name) ? colour(value, theme) : value;
  if (Array.isArray(value)) return value.map((item) => paint(item, theme, name));
  if (value === null || typeof value !== "object") return value;
  return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, paint(item, theme, key)]));
}

function layoutOf(figure, theme, width) {
  const axis = {
    gridcolor: theme.grid, zeroline: false, linecolor: theme.grid, showline: true, ticks: "outside",
    tickcolor: theme.grid, ticklen: 4, tickfont: { color: theme.muted },
  };
  const own = paint(figure.layout, theme);
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", hovermode: "closest",
    font: { family: FONT, size: width < 480 ? 11 : 12.5, color: theme.text },
    hoverlabel: { bgcolor: theme.label, bordercolor: theme.grid, font: { color: theme.text, family: FONT }, align: "left" },
    legend: { orientation: "h", x: 0, xanchor: "left", yref: "container", y: 1, yanchor: "top", bgcolor: "rgba(0,0,0,0)" },
    margin: { l: 10, r: 14, t: 14, b: 10 },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: theme.muted, activecolor: theme.text },
    // On a touch screen, dragging scrolls the page; the picture's own buttons zoom.
    dragmode: touch ? false : "zoom",
    ...own,
    xaxis: { ...axis, ...own.xaxis },
    yaxis: { ...axis, ...own.yaxis },
  };
}

const figures = [...document.querySelectorAll(".picture")].map((element) => [
  element,
  JSON.parse(document.getElementById(element.dataset.of).textContent),
]);

function drawOne([element, figure], theme, paper) {
  const layout = layoutOf(figure, theme, paper ? paper.width : element.clientWidth);
  element.style.height = `${(paper ?? figure).height}px`;
  if (paper) Object.assign(layout, paper, { autosize: false, font: { ...layout.font, size: 9.5 } });
  return Plotly.react(element, paint(figure.data, theme), layout, {
    responsive: true, displayModeBar: touch || "hover", displaylogo: false, showSendToCloud: false, plotlyServerURL: "",
    // Nothing on this page leaves the machine.
    modeBarButtonsToRemove: ["sendChartToCloud", "sendDataToCloud", "select2d", "lasso2d", "autoScale2d"],
  });
}

// A picture inside a closed section has no width yet.
const visible = () => figures.filter(([element]) => element.closest("details:not([open])") === null);
const current = () => (dark.matches ? THEMES.dark : THEMES.light);

// One after another from the top, so that the page stays responsive.
async function draw(some = visible()) {
  await ready;
  for (const one of some) {
    await drawOne(one, current());
    await new Promise((resolve) => { setTimeout(resolve); });
  }
}

// plotly.js is in the page as base64 of gzip.
async function unpack() {
  const text = atob(document.getElementById("plotly").textContent);
  const bytes = Uint8Array.from(text, (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const script = document.createElement("script");
  script.textContent = await new Response(stream).text();
  document.head.append(script);
}

// A document that stays open in a frame keeps the page loading until plotly.js is there: whoever prints the page as
// soon as it has loaded, as a browser without a window does, gets its pictures.
const loading = document.createElement("iframe");
loading.hidden = true;
document.body.append(loading);
loading.contentDocument.open();
const ready = unpack().finally(() => { loading.contentDocument.close(); loading.remove(); });
draw().then(() => { document.documentElement.dataset.drawn = visible().length; });

let printing = false;
for (const details of document.querySelectorAll("details")) {
  details.addEventListener("toggle", () => {
    // Redraw each time: colours may have changed while it was closed.
    if (details.open && !printing) draw(visible().filter(([element]) => details.contains(element)));
  });
}
dark.addEventListener("change", () => draw());

// Paper shows the claims, the reasons and how to read them; lists of numbers and trials, methods and further pictures stay folded.
// A claim's effects are in its table, which has them as small pictures too.
const TABULATED = ".claim .forest";
// A picture alone has its caption beside it, unless it is a heatmap, which needs the width.
const PAPER = { whole: 640, alone: 440, beside: 330 };
let unfolded = [];
function onPaper([element, figure]) {
  const shown = [...element.closest(".pictures").children].filter((one) => !one.matches(TABULATED));
  const place = figure.data[0].type === "heatmap" ? "whole" : shown.length === 1 ? "alone" : "beside";
  element.closest("figure").classList.toggle("alone", place === "alone");
  return { width: PAPER[place], height: figure.paper };
}
window.addEventListener("beforeprint", () => {
  printing = true;
  unfolded = [...document.querySelectorAll(":is(details.claim, details.reasons, details.legend):not([open])")];
  unfolded.forEach((details) => { details.open = true; });
  const shown = visible().filter(([element]) => !element.closest(TABULATED));
  return Promise.all(shown.map((one) => drawOne(one, THEMES.light, onPaper(one))));
});
window.addEventListener("afterprint", async () => {
  unfolded.forEach((details) => { details.open = false; });
  await draw();
  printing = false;
});
