// All of it, now that everything is there.

document.querySelector("main").hidden = false;
totals();
legend();
at("by-tensor").hidden = tensors.length === 0;
at("by-depth").hidden = stacks.length === 0;
const charts = () => {
  if (tensors.length > 0) tensorCharts();
  if (stacks.length > 0) depthCharts();
};
ladder();
reasons();
table();
charts();
at("with-kept").addEventListener("change", tensorCharts);
let width = innerWidth;
addEventListener("resize", () => {
  if (innerWidth === width) return;
  width = innerWidth;
  hideTip();
  requestAnimationFrame(charts);
});
