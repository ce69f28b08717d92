// Draws each figure from the JSON beside it, in the page's colours; again when these change.
const dark = matchMedia("(prefers-color-scheme: dark)");
const config = { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["select2d", "lasso2d"] };

function dress(paper) {
  const night = dark.matches && !paper;
  const ink = night ? "#e6e8eb" : "#1b1f24", line = night ? "#3a414a" : "#d0d7de";
  return {
    "font.color": ink,
    "xaxis.linecolor": line, "xaxis.showline": true, "yaxis.gridcolor": line,
    "hoverlabel.bgcolor": night ? "#1c2026" : "#ffffff",
    "hoverlabel.font.color": ink,
  };
}
function redress(paper) {
  for (const box of document.querySelectorAll(".figure")) Plotly.relayout(box, dress(paper));
}
for (const source of document.querySelectorAll("script.plot")) {
  const box = source.previousElementSibling, { data, layout } = JSON.parse(source.textContent);
  Plotly.newPlot(box, data, layout, config).then(() => Plotly.relayout(box, dress(false)));
}
dark.addEventListener("change", () => redress(false));
addEventListener("beforeprint", () => redress(true));
addEventListener("afterprint", () => redress(false));
